//! ServiceEntry, with Istio's checks: [`convert`].

use std::collections::BTreeSet;

use ambit_core::derive::{EntryPort, Resolution, Selector, ServiceEntry, Transport};
use ambit_core::model::{Exported, Identity};

use crate::Mistake;
use crate::field::Report;
use crate::networking as written;
use crate::{metadata, workload_entry};

pub(crate) fn convert(entry: written::ServiceEntry) -> Result<ServiceEntry, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_namespace(&mut report, entry.metadata);
    let spec = entry.spec;
    location(&mut report, spec.location.as_deref());
    let resolution = resolution(&mut report, spec.resolution.as_deref());
    let selector = selector(&mut report, spec.workload_selector);
    for (name, length, most) in [
        ("hosts", spec.hosts.len(), 256),
        ("ports", spec.ports.len(), 256),
        ("endpoints", spec.endpoints.len(), 4096),
        ("exportTo", spec.export_to.len(), 512),
    ] {
        report.at_most(format_args!("spec.{name}"), length, most);
    }
    check_endpoints(&mut report, resolution, &spec.hosts, &spec.endpoints, &selector);
    let endpoints = spec.endpoints.into_iter().enumerate().map(|(index, endpoint)| {
        let field = format!("spec.endpoints[{index}]");
        let endpoint = workload_entry::endpoint(&mut report, &field, &metadata, endpoint);
        if resolution == Resolution::Static && !endpoint.hostname.is_empty() {
            report.add(format_args!("{field}.address"), "resolution STATIC takes IP addresses only");
        }
        endpoint
    });
    let endpoints = endpoints.collect();
    let addresses = spec.addresses.iter().enumerate();
    let addresses =
        addresses.filter_map(|(i, text)| report.block(format_args!("spec.addresses[{i}]"), text)).collect();
    let exported = exported(&mut report, &metadata.namespace, &spec.export_to);
    let entry = ServiceEntry {
        metadata,
        hosts: hosts(&mut report, spec.hosts),
        addresses,
        ports: ports(&mut report, spec.ports),
        resolution,
        endpoints,
        selector,
        subject_alt_names: identities(&mut report, &spec.subject_alt_names),
        exported,
    };
    report.finish(entry)
}

/// `location` is checked and has no effect: endpoints are enrolled or not one by one.
fn location(report: &mut Report, location: Option<&str>) {
    match location {
        None | Some("MESH_EXTERNAL" | "MESH_INTERNAL") => {}
        Some(other) => {
            report.add("spec.location", format_args!("{other:?} is neither MESH_EXTERNAL nor MESH_INTERNAL"));
        }
    }
}

fn resolution(report: &mut Report, resolution: Option<&str>) -> Resolution {
    match resolution {
        None | Some("NONE") => Resolution::None,
        Some("STATIC") => Resolution::Static,
        // Both connect to one of the resolved addresses.
        Some("DNS" | "DNS_ROUND_ROBIN") => Resolution::Dns,
        Some(other) => {
            let known = "NONE, STATIC, DNS, DNS_ROUND_ROBIN";
            report.add("spec.resolution", format_args!("{other:?} is none of {known}"));
            Resolution::None
        }
    }
}

fn selector(report: &mut Report, selector: Option<written::EndpointSelector>) -> Selector {
    let Some(selector) = selector else { return Selector::new() };
    if selector.labels.is_empty() {
        report.add("spec.workloadSelector.labels", "is empty: name a label or leave the selector out");
    }
    for (key, value) in &selector.labels {
        if key.is_empty() || key.contains('*') || value.contains('*') {
            let field = format_args!("spec.workloadSelector.labels[{key:?}]");
            report.add(field, "a label has a key, and wildcards are not understood");
        }
    }
    selector.labels
}

/// Checks the endpoints against the resolution.
fn check_endpoints(
    report: &mut Report,
    resolution: Resolution,
    hosts: &[String],
    endpoints: &[written::WorkloadEntrySpec],
    selector: &Selector,
) {
    if !endpoints.is_empty() && !selector.is_empty() {
        report.add("spec.endpoints", "only one of endpoints and workloadSelector may be set");
    }
    if resolution == Resolution::None && !endpoints.is_empty() {
        report.add("spec.endpoints", "resolution NONE takes none: clients choose the address themselves");
    }
    if resolution == Resolution::Dns && endpoints.is_empty() && selector.is_empty() {
        for (index, _) in hosts.iter().enumerate().filter(|(_, host)| host.starts_with('*')) {
            let message = "a wildcard cannot be resolved: name endpoints, or a whole host name";
            report.add(format_args!("spec.hosts[{index}]"), message);
        }
    }
}

fn hosts(report: &mut Report, hosts: Vec<String>) -> Vec<String> {
    if hosts.is_empty() {
        report.add("spec.hosts", "missing");
    }
    let mut seen = BTreeSet::new();
    for (index, host) in hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        report.name(&field, host.strip_prefix("*.").unwrap_or(host));
        if !seen.insert(host) {
            report.add(&field, format_args!("{host} is named twice"));
        }
    }
    hosts
}

fn ports(report: &mut Report, ports: Vec<written::ServicePort>) -> Vec<EntryPort> {
    if ports.is_empty() {
        report.add("spec.ports", "missing");
    }
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut found = Vec::with_capacity(ports.len());
    for (index, port) in ports.into_iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let protocol = port.protocol.to_ascii_lowercase();
        let transport = match protocol.as_str() {
            "udp" => Transport::Udp,
            "" | "tcp" | "tls" | "http" | "https" | "http2" | "grpc" | "grpc-web" | "mongo" | "mysql"
            | "redis" => Transport::Tcp,
            _ => {
                let message = format_args!("{:?} is not a protocol", port.protocol);
                report.add(format_args!("{field}.protocol"), message);
                continue;
            }
        };
        if port.name.is_empty() {
            report.add(format_args!("{field}.name"), "missing");
        } else if !names.insert(port.name.clone()) {
            report.add(format_args!("{field}.name"), format_args!("{} is named twice", port.name));
        }
        let Some(number) = report.port(format_args!("{field}.number"), port.number) else { continue };
        if !numbers.insert(number) {
            report.add(format_args!("{field}.number"), format_args!("{number} is there twice"));
        }
        // Zero means not set.
        let target = match port.target_port.filter(|target| *target != 0) {
            Some(target) => report.port(format_args!("{field}.targetPort"), target),
            None => None,
        };
        found.push(EntryPort { name: port.name, port: number, target, transport, protocol });
    }
    found
}

/// The namespaces that see the entry, as in Istio: `.` is its own, `*` all, `~` none.
fn exported(report: &mut Report, own: &str, export_to: &[String]) -> Exported {
    let mut namespaces = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (index, namespace) in export_to.iter().enumerate() {
        let field = format!("spec.exportTo[{index}]");
        let name = if namespace == "." { own } else { namespace };
        if !seen.insert(name) {
            report.add(&field, format_args!("{name} is named twice"));
        }
        match name {
            "*" | "~" if export_to.len() > 1 => {
                report.add(&field, format_args!("{name} stands alone"));
            }
            "*" | "~" => {}
            name => {
                report.label(&field, name);
                namespaces.insert(name.into());
            }
        }
    }
    match export_to {
        [] => Exported::Everywhere,
        [only] if only == "*" => Exported::Everywhere,
        _ => Exported::To(namespaces),
    }
}

/// The identities among the names. Other names are legal, but a tunnel's peer cannot present them.
fn identities(report: &mut Report, names: &[String]) -> Vec<Identity> {
    let names = names.iter().enumerate().filter(|(_, name)| name.starts_with("spiffe://"));
    let parsed = names.filter_map(|(index, name)| match name.parse() {
        Ok(identity) => Some(identity),
        Err(error) => {
            report.add(format_args!("spec.subjectAltNames[{index}]"), error);
            None
        }
    });
    parsed.collect()
}
