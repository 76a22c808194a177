//! Pins the wire: every field, number and type of `proto/` against `wire.txt`, which was written from Istio's
//! and Envoy's definitions and not from ours, and a few messages byte by byte.

use std::collections::BTreeSet;

use ambit_xds::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ambit_xds::proto::istio::security::Authorization;
use ambit_xds::proto::istio::v1::auth::IstioCertificateRequest;
use ambit_xds::proto::istio::workload::{Address, address};
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, MessageOptions,
};

const FILES: [&str; 4] = [
    "istio/workload/workload.proto",
    "istio/security/authorization.proto",
    "istio/v1/auth/ca.proto",
    "envoy/service/discovery/v3/discovery.proto",
];

#[test]
fn every_field_has_its_number() {
    let compiled = protox::compile(FILES, ["proto"]).expect("protos compile");
    let ours = describe(&compiled);
    let facts: BTreeSet<String> = include_str!("wire.txt").lines().map(str::to_owned).collect();
    let missing: Vec<_> = facts.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&facts).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "not in proto/: {missing:#?}\nnot in wire.txt: {extra:#?}"
    );
}

fn describe(files: &FileDescriptorSet) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for file in files.file.iter().filter(|f| !f.package().starts_with("google.")) {
        let package = file.package();
        for message in &file.message_type {
            describe_message(package, &format!("{package}.{}", message.name()), message, &mut lines);
        }
        for kind in &file.enum_type {
            describe_enum(&format!("{package}.{}", kind.name()), kind, &mut lines);
        }
        for service in &file.service {
            for method in &service.method {
                let side = |streaming, name| {
                    format!("{}{}", if streaming { "stream " } else { "" }, short(package, name))
                };
                lines.insert(format!(
                    "{package}.{}: rpc {}({}) returns ({})",
                    service.name(),
                    method.name(),
                    side(method.client_streaming(), method.input_type()),
                    side(method.server_streaming(), method.output_type()),
                ));
            }
        }
    }
    lines
}

fn describe_message(package: &str, path: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    for field in &message.field {
        let entry = message.nested_type.iter().find(|nested| {
            nested.options.as_ref().is_some_and(MessageOptions::map_entry)
                && field.type_name().ends_with(&format!(".{}", nested.name()))
        });
        let text = match entry {
            Some(entry) => {
                format!("map<{}, {}>", name(package, &entry.field[0]), name(package, &entry.field[1]))
            }
            None if field.proto3_optional() => format!("optional {}", name(package, field)),
            None if field.label() == Label::Repeated => format!("repeated {}", name(package, field)),
            None => match field.oneof_index {
                Some(index) => {
                    let oneof = &message.oneof_decl[usize::try_from(index).expect("index")];
                    format!("oneof {} {}", oneof.name(), name(package, field))
                }
                None => name(package, field),
            },
        };
        lines.insert(format!("{path}: {text} {} = {}", field.name(), field.number()));
    }
    for nested in
        message.nested_type.iter().filter(|n| !n.options.as_ref().is_some_and(MessageOptions::map_entry))
    {
        describe_message(package, &format!("{path}.{}", nested.name()), nested, lines);
    }
    for kind in &message.enum_type {
        describe_enum(&format!("{path}.{}", kind.name()), kind, lines);
    }
}

fn describe_enum(path: &str, kind: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &kind.value {
        lines.insert(format!("{path}: {} = {}", value.name(), value.number()));
    }
}

fn name(package: &str, field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => short(package, field.type_name()),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

/// Of the own package the last part, of others all.
fn short(package: &str, full: &str) -> String {
    let full = full.trim_start_matches('.');
    match full.strip_prefix(package).and_then(|rest| rest.strip_prefix('.')) {
        Some(own) => own.rsplit('.').next().unwrap_or(own).to_owned(),
        None => full.to_owned(),
    }
}

/// Field tags as on the wire: number × 8 + kind (0 number, 2 length-delimited).
fn number(field: u32, value: u8) -> Vec<u8> {
    let mut bytes = tag(field * 8);
    bytes.push(value);
    bytes
}

fn text(field: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = tag(field * 8 + 2);
    bytes.push(u8::try_from(value.len()).expect("short"));
    assert!(value.len() < 128);
    bytes.extend(value);
    bytes
}

fn tag(tag: u32) -> Vec<u8> {
    match tag {
        0..128 => vec![u8::try_from(tag).expect("small")],
        _ => vec![u8::try_from(tag % 128 + 128).expect("low"), u8::try_from(tag / 128).expect("high")],
    }
}

/// A pod as another control plane sends it, with fields that are nothing to us (hostname 21, canonical 12,
/// …).
#[test]
fn istios_workloads_are_decoded() {
    let port = [number(1, 80), number(2, 90)].concat();
    let services = [text(1, b"shop/cart.shop"), text(2, &text(1, &port))].concat();
    let waypoint = [
        text(1, &[text(1, b"shop"), text(2, b"wp.shop")].concat()),
        [&tag(3 * 8)[..], &[0xa0, 0x75]].concat(),
    ];
    let workload = [
        text(1, b"cart-1"),
        text(2, b"shop"),
        text(3, &[10, 1, 0, 7]),
        text(4, b"net-1"),
        number(5, 1),
        text(7, b"cart"),
        text(8, &waypoint.concat()),
        text(9, b"node-a"),
        text(10, b"cart"),
        text(11, b"v1"),
        number(12, 0),
        text(13, b"cart"),
        text(16, b"shop/allow-web"),
        number(17, 1),
        text(18, b"Kubernetes"),
        text(20, b"Kubernetes//Pod/shop/cart-1"),
        text(21, b"unused.example"),
        text(22, &services),
        text(24, &[text(1, b"r"), text(2, b"z"), text(3, b"s")].concat()),
        number(25, 1),
        text(27, &number(1, 5)),
    ]
    .concat();
    // A message longer than 127 bytes needs a length of two bytes.
    let length = workload.len();
    let mut address =
        vec![0x0a, u8::try_from(length % 128 + 128).expect("low"), u8::try_from(length / 128).expect("high")];
    address.extend(workload);
    let message = Address::decode(address.as_slice()).expect("a message");
    let Some(address::Type::Workload(workload)) = message.r#type else { panic!("a workload") };
    let workload = ambit_xds::convert::decode_workload(&workload).expect("a workload of the model");
    let expected = "Workload { uid: WorkloadUid(\"Kubernetes//Pod/shop/cart-1\"), name: \"cart-1\", \
         namespace: \"shop\", service_account: \"cart\", trust_domain: TrustDomain(\"cluster.local\"), node: \
         \"node-a\", cluster: \"Kubernetes\", network: \"net-1\", network_mode: HostNetwork, addresses: \
         [10.1.0.7], protocol: Hbone, health: Unhealthy, services: {ServiceKey { namespace: \"shop\", \
         hostname: \"cart.shop\" }: [PortMapping { service_port: 80, target_port: 90 }]}, policies: \
         [PolicyKey { namespace: \"shop\", name: \"allow-web\" }], waypoint: Some(Waypoint { destination: \
         Hostname(ServiceKey { namespace: \"shop\", hostname: \"wp.shop\" }), hbone_port: 15008, \
         service_account: None, state: Programmed }), require_waypoint: false, locality: Locality { \
         region: \"r\", zone: \"z\", subzone: \"s\" }, capacity: 5, kind: Deployment, \
         workload_name: \"cart\", canonical_name: \"cart\", canonical_revision: \"v1\", probe_ports: [], \
         excluded_ports: ExcludedPorts { inbound: {}, outbound: {} }, hostname: Some(\"unused.example\"), \
         direct: true, same_node_tls: false, trust_domain_aliases: [], origin: Kubernetes }";
    assert_eq!(format!("{workload:?}"), expected);
}

#[test]
fn istios_policies_are_decoded() {
    let m = [
        text(3, &text(1, b"td/ns/a/sa/b")),
        text(6, &[text(1, &[10, 0, 0, 0]), number(2, 8)].concat()),
        text(9, &[80]),
    ];
    let policy = [
        text(1, b"p"),
        text(2, b"shop"),
        number(3, 2),
        number(4, 1),
        text(5, &text(1, &text(2, &m.concat()))),
        number(6, 1),
    ]
    .concat();
    let policy = Authorization::decode(policy.as_slice()).expect("a message");
    let policy = ambit_xds::convert::decode_authorization(&policy).expect("a policy of the model");
    assert_eq!(policy.key.to_string(), "shop/p");
    assert_eq!(
        format!("{:?} {:?} {}", policy.scope, policy.action, policy.dry_run),
        "WorkloadSelector Deny true"
    );
    let m = &policy.rules[0].clauses[0].matches[0];
    assert_eq!(format!("{:?}", m.principals), "[Exact(\"td/ns/a/sa/b\")]");
    assert_eq!(format!("{:?}", m.not_source_ips), "[IpBlock(10.0.0.0/8)]");
    assert_eq!(m.destination_ports, [80]);
}

#[test]
fn stream_messages_and_certificate_requests_are_encoded_as_istios() {
    let request = DeltaDiscoveryRequest {
        type_url: "t".into(),
        resource_names_subscribe: vec!["*".into()],
        initial_resource_versions: [("n".to_owned(), "v".to_owned())].into(),
        response_nonce: "7".into(),
        ..Default::default()
    };
    let bytes =
        [text(2, b"t"), text(3, b"*"), text(5, &[text(1, b"n"), text(2, b"v")].concat()), text(6, b"7")]
            .concat();
    assert_eq!(request.encode_to_vec(), bytes);

    let response =
        [text(2, &[text(1, b"v"), text(3, b"n")].concat()), text(4, b"t"), text(5, b"7"), text(6, b"gone")]
            .concat();
    let response = DeltaDiscoveryResponse::decode(response.as_slice()).expect("a message");
    assert_eq!((response.resources[0].name.as_str(), response.resources[0].version.as_str()), ("n", "v"));
    assert_eq!((response.removed_resources[0].as_str(), response.nonce.as_str()), ("gone", "7"));

    let request = IstioCertificateRequest { csr: "c".into(), validity_duration: 60, metadata: None };
    assert_eq!(request.encode_to_vec(), [text(1, b"c"), number(3, 60)].concat());
}
