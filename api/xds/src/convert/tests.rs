//! Values survive the wire, and what is not a value is refused by name and field.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ambit_core::model::*;
use ipnet::IpNet;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use super::*;

mod routes;
use crate::proto::istio::security as security_wire;
use crate::proto::istio::workload as wire;

fn text() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9.-]{0,12}".prop_map(Into::into)
}

fn any_text() -> impl Strategy<Value = Arc<str>> {
    "\\PC{0,12}".prop_map(Into::into)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from(bits)).to_canonical()),
    ]
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    (text(), text()).prop_map(|(namespace, hostname)| ServiceKey { namespace, hostname })
}

fn policy_key() -> impl Strategy<Value = PolicyKey> {
    (text(), text()).prop_map(|(namespace, name)| PolicyKey { namespace, name })
}

fn trust_domain() -> impl Strategy<Value = TrustDomain> {
    "[a-z][a-z0-9.-]{0,12}".prop_map(|text| text.parse().expect("a trust domain"))
}

fn identity() -> impl Strategy<Value = Identity> {
    (trust_domain(), text(), text()).prop_map(|(trust_domain, namespace, service_account)| Identity {
        trust_domain,
        namespace,
        service_account,
    })
}

fn waypoint() -> impl Strategy<Value = Waypoint> {
    let destination = prop_oneof![
        service_key().prop_map(WaypointDestination::Hostname),
        ip().prop_map(WaypointDestination::Address),
    ];
    let state = prop_oneof![
        Just(WaypointState::Programmed),
        Just(WaypointState::Pending),
        Just(WaypointState::Awaited)
    ];
    (destination, 1_u16.., option::of(text()), state).prop_map(
        |(destination, hbone_port, service_account, state)| Waypoint {
            destination,
            hbone_port,
            service_account,
            state,
        },
    )
}

fn mapping() -> impl Strategy<Value = PortMapping> {
    (any::<u16>(), any::<u16>())
        .prop_map(|(service_port, target_port)| PortMapping { service_port, target_port })
}

fn origin() -> impl Strategy<Value = Origin> {
    let exported = prop_oneof![Just(Exported::Everywhere), btree_set(text(), 0..3).prop_map(Exported::To),];
    prop_oneof![
        Just(Origin::Kubernetes),
        Just(Origin::Listed),
        (option::of(any::<i64>()), exported)
            .prop_map(|(created, exported)| Origin::Entry(Claim { created, exported })),
    ]
}

prop_compose! {
    fn workload()(
        (uid, name, namespace, service_account) in (text(), any_text(), text(), any_text()),
        (node, cluster) in (any_text(), any_text()),
        (network, workload_name) in (any_text(), any_text()),
        (canonical_name, canonical_revision) in (any_text(), any_text()),
        (region, zone, subzone) in (any_text(), any_text(), any_text()),
        (trust_domain, addresses, waypoint) in (trust_domain(), vec(ip(), 0..4), option::of(waypoint())),
        services in btree_map(service_key(), vec(mapping(), 0..4), 0..4),
        (policies, probe_ports, capacity) in (vec(policy_key(), 0..3), vec(any::<u16>(), 0..3), any::<u32>()),
        (hbone, host, direct, same_node_tls, require_waypoint) in any::<(bool, bool, bool, bool, bool)>(),
        health in prop_oneof![Just(Health::Healthy), Just(Health::Unhealthy), Just(Health::Draining)],
        (hostname, aliases) in (option::of(text()), vec(trust_domain(), 0..3)),
        (excluded_in, excluded_out) in (btree_set(any::<u16>(), 0..3), btree_set(any::<u16>(), 0..3)),
        origin in origin(),
        kind in prop_oneof![
            Just(WorkloadKind::Deployment),
            Just(WorkloadKind::CronJob),
            Just(WorkloadKind::Pod),
            Just(WorkloadKind::Job),
        ],
    ) -> Workload {
        Workload {
            uid: WorkloadUid(uid), name, namespace, service_account, trust_domain, node, cluster, network,
            network_mode: if host { NetworkMode::HostNetwork } else { NetworkMode::Standard },
            addresses,
            protocol: if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None },
            health, services, policies, waypoint,
            locality: Locality { region, zone, subzone },
            capacity, kind, workload_name, canonical_name, canonical_revision, probe_ports,
            excluded_ports: ExcludedPorts { inbound: excluded_in, outbound: excluded_out },
            hostname, direct, same_node_tls, require_waypoint,
            trust_domain_aliases: aliases.into(),
            origin,
        }
    }
}

prop_compose! {
    fn service()(
        (key, name, addresses) in (service_key(), any_text(), vec(ip(), 0..4)),
        waypoint in option::of(waypoint()),
        ports in vec((any::<u16>(), any::<u16>(), prop_oneof![
            Just(AppProtocol::Unknown),
            Just(AppProtocol::Http11),
            Just(AppProtocol::Http2),
            Just(AppProtocol::Grpc),
            Just(AppProtocol::Tcp), Just(AppProtocol::Tls),
        ]), 0..4),
        subject_alt_names in vec(identity(), 0..3),
        routing_preference in vec(prop_oneof![
            Just(LocalityScope::Region), Just(LocalityScope::Zone), Just(LocalityScope::Subzone),
            Just(LocalityScope::Node), Just(LocalityScope::Cluster), Just(LocalityScope::Network),
        ], 0..4),
        mode in prop_oneof![
            Just(LoadBalancingMode::Unspecified),
            Just(LoadBalancingMode::Strict),
            Just(LoadBalancingMode::Failover),
            Just(LoadBalancingMode::Passthrough),
        ],
        (allow_unhealthy, virtual_addresses) in any::<(bool, bool)>(),
        affinity in prop_oneof![Just(Affinity::None), Just(Affinity::ClientIp)],
        (shared_addresses, origin) in (vec(ip(), 0..3), origin()),
    ) -> Service {
        let port = |(port, target_port, app_protocol)| ServicePort { port, target_port, app_protocol };
        Service {
            key, name, addresses, waypoint, subject_alt_names,
            ports: ports.into_iter().map(port).collect(),
            load_balancing: LoadBalancing { routing_preference, mode, allow_unhealthy, affinity },
            virtual_addresses, shared_addresses, origin,
        }
    }
}

fn string_matches() -> impl Strategy<Value = Vec<StringMatch>> {
    vec(
        prop_oneof![
            any_text().prop_map(StringMatch::Exact),
            any_text().prop_map(StringMatch::Prefix),
            any_text().prop_map(StringMatch::Suffix),
            Just(StringMatch::Presence),
        ],
        0..3,
    )
}

fn accounts() -> impl Strategy<Value = Vec<ServiceAccountMatch>> {
    let account = (text(), text())
        .prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account });
    vec(account, 0..3)
}

fn blocks() -> impl Strategy<Value = Vec<IpBlock>> {
    let v4 = (any::<u32>(), 0..=32_u8).prop_map(|(bits, length)| (IpAddr::V4(bits.into()), length));
    let v6 = (any::<u128>(), 0..=128_u8).prop_map(|(bits, length)| (IpAddr::V6(bits.into()), length));
    let mapped = (any::<u32>(), 0..=128_u8)
        .prop_map(|(bits, length)| (IpAddr::V6(Ipv4Addr::from(bits).to_ipv6_mapped()), length));
    let block = prop_oneof![v4, v6, mapped]
        .prop_map(|(ip, length)| IpBlock(IpNet::new(ip, length).expect("a length that fits")));
    vec(block, 0..3)
}

prop_compose! {
    fn conditions()(
        (namespaces, not_namespaces, principals, not_principals) in
            (string_matches(), string_matches(), string_matches(), string_matches()),
        (service_accounts, not_service_accounts) in (accounts(), accounts()),
        (source_ips, not_source_ips) in (blocks(), blocks()),
        (destination_ips, not_destination_ips) in (blocks(), blocks()),
        (destination_ports, not_destination_ports) in (vec(any::<u16>(), 0..3), vec(any::<u16>(), 0..3)),
    ) -> Match {
        Match {
            namespaces, not_namespaces, service_accounts, not_service_accounts, principals, not_principals,
            source_ips, not_source_ips, destination_ips, not_destination_ips,
            destination_ports, not_destination_ports,
        }
    }
}

prop_compose! {
    fn authorization()(
        key in policy_key(),
        scope in prop_oneof![Just(Scope::Global), Just(Scope::Namespace), Just(Scope::WorkloadSelector)],
        (deny, dry_run) in (any::<bool>(), any::<bool>()),
        rules in vec(vec(vec(conditions(), 0..3), 0..3), 0..3),
    ) -> Authorization {
        let clause = |matches| Clause { matches };
        let rule = |clauses: Vec<_>| Rule { clauses: clauses.into_iter().map(clause).collect() };
        Authorization {
            key, scope, dry_run,
            action: if deny { Action::Deny } else { Action::Allow },
            rules: rules.into_iter().map(rule).collect(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn workloads_round_trip(workload in workload()) {
        let bytes = encode_workload(&workload).encode_to_vec();
        let message = wire::Workload::decode(bytes.as_slice()).expect("a message");
        prop_assert_eq!(decode_workload(&message), Ok(workload));
    }

    #[test]
    fn services_round_trip(service in service()) {
        let bytes = encode_service(&service).encode_to_vec();
        let message = wire::Service::decode(bytes.as_slice()).expect("a message");
        prop_assert_eq!(decode_service(&message), Ok(service));
    }

    #[test]
    fn policies_round_trip(policy in authorization()) {
        let bytes = encode_authorization(&policy).encode_to_vec();
        let message = security_wire::Authorization::decode(bytes.as_slice()).expect("a message");
        prop_assert_eq!(decode_authorization(&message), Ok(policy));
    }

    /// Whatever bytes come, they are a value or an error.
    #[test]
    fn random_bytes_decode_without_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(message) = wire::Workload::decode(bytes.as_slice()) {
            let _ = decode_workload(&message);
        }
        if let Ok(message) = wire::Service::decode(bytes.as_slice()) {
            let _ = decode_service(&message);
        }
        if let Ok(message) = security_wire::Authorization::decode(bytes.as_slice()) {
            let _ = decode_authorization(&message);
        }
    }

    /// Neither may a good message with one bit turned.
    #[test]
    fn damaged_messages_are_decoded_without_panic(
        policy in authorization(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let mut bytes = encode_authorization(&policy).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(message) = security_wire::Authorization::decode(bytes.as_slice()) {
            let _ = decode_authorization(&message);
        }
    }
}

fn good_workload() -> wire::Workload {
    wire::Workload {
        uid: "Kubernetes//Pod/shop/cart".into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    }
}

#[test]
fn absent_fields_have_istios_defaults() {
    let workload = decode_workload(&good_workload()).expect("a workload");
    assert_eq!(workload.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!(workload.capacity, 1);
    assert_eq!(workload.protocol, TunnelProtocol::None);
    assert_eq!(workload.kind, WorkloadKind::Deployment);
    let zero = decode_workload(&wire::Workload { capacity: Some(0), ..good_workload() }).expect("a workload");
    assert_eq!(zero.capacity, 0);
    let mapped = Ipv4Addr::new(10, 0, 0, 9).to_ipv6_mapped().octets().to_vec();
    let mapped =
        decode_workload(&wire::Workload { addresses: vec![mapped], ..good_workload() }).expect("a workload");
    assert_eq!(mapped.addresses, [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9))]);
}

#[test]
fn invalid_workloads_are_rejected_by_field() {
    type Row = (&'static str, fn(&mut wire::Workload));
    let rows: [Row; 14] = [
        ("cart: uid: must not be empty", |w| (w.uid, w.name) = (String::new(), "cart".into())),
        ("U: namespace: must not be empty", |w| w.namespace.clear()),
        ("U: addresses[1]: an address has 4 or 16 bytes, not 5", |w| w.addresses.push(vec![0; 5])),
        ("U: tunnel_protocol: unknown value 9", |w| w.tunnel_protocol = 9),
        ("U: status: unknown value 2", |w| w.status = 2),
        ("U: workload_type: unknown value -1", |w| w.workload_type = -1),
        ("U: network_mode: unknown value 7", |w| w.network_mode = 7),
        ("U: authorization_policies[0]: \"p\" is not <namespace>/<name>", |w| {
            w.authorization_policies = vec!["p".into()];
        }),
        ("U: services[cart]: \"cart\" is not <namespace>/<hostname>", |w| {
            w.services = BTreeMap::from([("cart".into(), wire::PortList::default())]);
        }),
        ("U: services[a/b].ports[0].target_port: 65536 is not a port", |w| {
            let port = wire::Port { service_port: 1, target_port: 65_536, app_protocol: 0 };
            w.services = BTreeMap::from([("a/b".into(), wire::PortList { ports: vec![port] })]);
        }),
        ("U: waypoint: names no destination", |w| w.waypoint = Some(wire::GatewayAddress::default())),
        ("U: waypoint.address.length: a range (/8) is not supported", |w| {
            let address =
                wire::NetworkAddress { address: vec![10, 0, 0, 0], length: Some(8), ..Default::default() };
            let destination = Some(wire::gateway_address::Destination::Address(address));
            w.waypoint = Some(wire::GatewayAddress { destination, hbone_mtls_port: 0 });
        }),
        ("U: extensions[ambit.dev/workload]: has no config", |w| {
            w.extensions = vec![wire::Extension { name: WORKLOAD_EXTENSION.into(), config: None }];
        }),
        ("U: trust_domain: \"A B\" is not a trust domain: lower-case letters, digits, '.', '-', '_'", |w| {
            w.trust_domain = "A B".into();
        }),
    ];
    for (expected, spoil) in rows {
        let mut workload = good_workload();
        spoil(&mut workload);
        let error = decode_workload(&workload).expect_err(expected);
        assert_eq!(error.to_string().replace("Kubernetes//Pod/shop/cart:", "U:"), expected);
    }
}

#[test]
fn invalid_services_are_rejected_by_field() {
    type Row = (&'static str, fn(&mut wire::Service));
    let rows: [Row; 7] = [
        ("/cart.shop: namespace: must not be empty", |s| s.namespace.clear()),
        ("shop/cart.shop: addresses[0].address: an address has 4 or 16 bytes, not 0", |s| {
            s.addresses = vec![wire::NetworkAddress::default()];
        }),
        ("shop/cart.shop: ports[0].app_protocol: unknown value 6", |s| {
            s.ports = vec![wire::Port { service_port: 1, target_port: 1, app_protocol: 6 }];
        }),
        ("shop/cart.shop: load_balancing.mode: unknown value 4", |s| {
            s.load_balancing = Some(wire::LoadBalancing { mode: 4, ..Default::default() });
        }),
        ("shop/cart.shop: load_balancing.routing_preference[1]: unknown value 77", |s| {
            s.load_balancing =
                Some(wire::LoadBalancing { routing_preference: vec![1, 77], ..Default::default() });
        }),
        ("shop/cart.shop: load_balancing.routing_preference[0]: is not specified", |s| {
            s.load_balancing =
                Some(wire::LoadBalancing { routing_preference: vec![0], ..Default::default() });
        }),
        (
            "shop/cart.shop: subject_alt_names[1]: \"spiffe://x\" is not spiffe://<trust \
             domain>/ns/<namespace>/sa/<service account>",
            |s| s.subject_alt_names = vec!["dns.example".into(), "spiffe://x".into()],
        ),
    ];
    for (expected, spoil) in rows {
        let mut service =
            wire::Service { namespace: "shop".into(), hostname: "cart.shop".into(), ..Default::default() };
        spoil(&mut service);
        assert_eq!(decode_service(&service).expect_err(expected).to_string(), expected);
    }
}

fn policy_of(
    action: security_wire::Action,
    matches: Vec<security_wire::Match>,
) -> security_wire::Authorization {
    let clauses = vec![security_wire::Clause { matches }];
    security_wire::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        action: action.into(),
        rules: vec![security_wire::Rule { clauses }],
        ..Default::default()
    }
}

#[test]
fn invalid_policies_are_rejected_by_field() {
    const AT: &str = "rules[0].clauses[0].matches[1]";
    type Row = (&'static str, fn(&mut security_wire::Match));
    let rows: [Row; 6] = [
        ("principals[0]: has no known match type", |m| {
            m.principals = vec![security_wire::StringMatch::default()];
        }),
        ("source_ips[0].address: an address has 4 or 16 bytes, not 3", |m| {
            m.source_ips = vec![security_wire::Address { address: vec![1, 2, 3], length: 8 }];
        }),
        ("not_source_ips[0].length: /33 does not fit 10.0.0.0", |m| {
            m.not_source_ips = vec![security_wire::Address { address: vec![10, 0, 0, 0], length: 33 }];
        }),
        ("destination_ips[0].length: /300 does not fit ::", |m| {
            m.destination_ips = vec![security_wire::Address { address: vec![0; 16], length: 300 }];
        }),
        ("not_destination_ports[1]: 70000 is not a port", |m| m.not_destination_ports = vec![1, 70_000]),
        ("service_accounts[0].serviceAccount: must not be empty", |m| {
            let namespace = "a".into();
            m.service_accounts =
                vec![security_wire::ServiceAccountMatch { namespace, service_account: String::new() }];
        }),
    ];
    for (expected, spoil) in rows {
        let mut matches = vec![security_wire::Match::default(); 2];
        spoil(&mut matches[1]);
        let error =
            decode_authorization(&policy_of(security_wire::Action::Allow, matches)).expect_err(expected);
        assert_eq!(error.to_string(), format!("shop/p: {AT}.{expected}"));
    }
}

#[test]
fn invalid_policy_headers_are_rejected_by_field() {
    type Row = (&'static str, fn(&mut security_wire::Authorization));
    let rows: [Row; 3] = [
        ("shop/p: action: unknown value 2", |p| p.action = 2),
        ("shop/p: scope: unknown value 3", |p| p.scope = 3),
        ("shop/: name: must not be empty", |p| p.name.clear()),
    ];
    for (expected, spoil) in rows {
        let mut policy = policy_of(security_wire::Action::Allow, Vec::new());
        spoil(&mut policy);
        assert_eq!(decode_authorization(&policy).expect_err(expected).to_string(), expected);
    }
}

/// An unknown condition narrows what an ALLOW permits to nothing, and never narrows a DENY.
#[test]
fn unknown_conditions_never_permit_more() {
    use security_wire::Action::{Allow, Deny};
    let unknown = vec![wire::Extension { name: "other.example/x".into(), config: None }];
    let only = security_wire::Match { extensions: unknown.clone(), ..Default::default() };
    let with_port =
        security_wire::Match { extensions: unknown, destination_ports: vec![80], ..Default::default() };
    let plain = security_wire::Match { destination_ports: vec![81], ..Default::default() };
    let port = |port| Match { destination_ports: vec![port], ..Match::default() };
    // A match without conditions never matches; a clause without matches always does.
    let rows = [
        ("ALLOW, nothing else", Allow, vec![only.clone()], vec![Match::default()]),
        ("ALLOW, with a port", Allow, vec![with_port.clone()], vec![Match::default()]),
        (
            "ALLOW, beside another",
            Allow,
            vec![with_port.clone(), plain.clone()],
            vec![Match::default(), port(81)],
        ),
        ("DENY, nothing else", Deny, vec![only.clone()], vec![]),
        ("DENY, with a port", Deny, vec![with_port], vec![port(80)]),
        ("DENY, beside another", Deny, vec![plain, only], vec![]),
    ];
    for (name, action, matches, expected) in rows {
        let policy = decode_authorization(&policy_of(action, matches)).expect(name);
        assert_eq!(policy.rules[0].clauses[0].matches, expected, "{name}");
    }
}
