//! EndpointSlice, as kube-proxy reads it: [`convert`].

use ambit_core::derive::{EndpointSlice, SliceEndpoint, SlicePort};
use ambit_core::model::Health;
use k8s_openapi::api::discovery::v1 as api;

use crate::Mistake;
use crate::field::Report;
use crate::kubernetes::transport;
use crate::metadata;

const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// The controller that derives slices from services' selectors.
const OF_SELECTORS: &str = "endpointslice-controller.k8s.io";

pub(crate) fn convert(slice: api::EndpointSlice) -> Result<EndpointSlice, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_namespace(&mut report, slice.metadata);
    let label = |name: &str| metadata.labels.get(name).map(String::as_str).unwrap_or_default();
    let (service, of_selector) = (label(SERVICE).to_owned(), label(MANAGED_BY) == OF_SELECTORS);
    // The pods have the same information, so the content is not kept.
    if of_selector {
        return report.finish(EndpointSlice { metadata, service, of_selector, ..EndpointSlice::default() });
    }
    let by_address = match slice.address_type.as_str() {
        "IPv4" | "IPv6" => true,
        "FQDN" => false,
        other => {
            report.add("addressType", format_args!("{other:?} is none of IPv4, IPv6, FQDN"));
            false
        }
    };
    let listed = slice.endpoints.into_iter().enumerate().filter(|_| by_address);
    let endpoints = listed
        .filter_map(|(index, listed)| endpoint(&mut report, index, &metadata.namespace, listed))
        .collect();
    let ports = slice.ports.iter().flatten().enumerate();
    let ports = ports.filter_map(|(index, listed)| port(&mut report, index, listed)).collect();
    report.finish(EndpointSlice { metadata, service, of_selector, endpoints, ports })
}

/// Only the first of several addresses is used, as in kube-proxy.
fn endpoint(
    report: &mut Report,
    index: usize,
    namespace: &str,
    endpoint: api::Endpoint,
) -> Option<SliceEndpoint> {
    let address = endpoint.addresses.first()?;
    let address = report.address(format_args!("endpoints[{index}].addresses[0]"), address)?;
    let target = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = target.map(|target| {
        let here = target.namespace.as_deref().is_none_or(|other| other == namespace);
        // A pod of another namespace becomes a name that no pod has.
        target.name.filter(|_| here).unwrap_or_default()
    });
    Some(SliceEndpoint {
        address,
        health: health(endpoint.conditions.as_ref()),
        node: endpoint.node_name.unwrap_or_default(),
        zone: endpoint.zone.unwrap_or_default(),
        pod,
    })
}

fn health(conditions: Option<&api::EndpointConditions>) -> Health {
    let Some(conditions) = conditions else { return Health::Healthy };
    let (serving, terminating) = (conditions.serving == Some(true), conditions.terminating == Some(true));
    match conditions.ready {
        None | Some(true) => Health::Healthy,
        Some(false) if serving && terminating => Health::Draining,
        Some(false) => Health::Unhealthy,
    }
}

/// A port without number means all ports: it is ignored, as in kube-proxy.
fn port(report: &mut Report, index: usize, port: &api::EndpointPort) -> Option<SlicePort> {
    let field = format!("ports[{index}]");
    let number = report.port(format_args!("{field}.port"), port.port?);
    let transport = transport(report, &format!("{field}.protocol"), port.protocol.as_deref());
    Some(SlicePort { name: port.name.clone().unwrap_or_default(), port: number?, transport: transport? })
}
