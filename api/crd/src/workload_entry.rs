//! WorkloadEntry: [`convert`].

use std::net::IpAddr;

use ambit_core::derive::{LocalityText, Metadata, WorkloadEntry};

use crate::Mistake;
use crate::field::Report;
use crate::metadata;
use crate::networking as written;

pub(crate) fn convert(entry: written::WorkloadEntry) -> Result<WorkloadEntry, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_namespace(&mut report, entry.metadata);
    let entry = endpoint(&mut report, "spec", &metadata, entry.spec);
    report.finish(entry)
}

/// A workload of a WorkloadEntry, or of a ServiceEntry's inline endpoint.
pub(crate) fn endpoint(
    report: &mut Report,
    field: &str,
    metadata: &Metadata,
    spec: written::WorkloadEntrySpec,
) -> WorkloadEntry {
    if !spec.service_account.is_empty() {
        report.name(format_args!("{field}.serviceAccount"), &spec.service_account);
    }
    let ports = spec.ports.iter().filter_map(|(name, number)| {
        Some((name.clone(), report.port(format_args!("{field}.ports.{name}"), *number)?))
    });
    let ports = ports.collect();
    let weight = spec.weight.and_then(|weight| {
        u32::try_from(weight)
            .inspect_err(|_| {
                report.add(format_args!("{field}.weight"), format_args!("{weight} is not a weight"));
            })
            .ok()
    });
    let address = address(report, &format!("{field}.address"), &spec.address, &spec.network);
    let hostname = if address.is_none() { spec.address } else { String::new() };
    WorkloadEntry {
        address,
        hostname,
        metadata: metadata.clone(),
        ports,
        labels: spec.labels,
        network: spec.network,
        locality: locality(&spec.locality),
        weight,
        service_account: spec.service_account,
    }
}

fn address(report: &mut Report, field: &str, text: &str, network: &str) -> Option<IpAddr> {
    if text.is_empty() {
        // An entry of another network is reached through the network's gateway.
        if network.is_empty() {
            report.add(field, "missing");
        }
        return None;
    }
    if text.starts_with("unix:") {
        report.add(field, "Unix sockets are not supported");
        return None;
    }
    let address = text.parse::<IpAddr>().ok();
    if address.is_none() {
        report.name(field, text);
    }
    address.map(|address| address.to_canonical())
}

fn locality(text: &str) -> LocalityText {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    LocalityText { region: part(), zone: part(), subzone: part() }
}
