//! EndpointSlice → endpoints of services without selector. An endpoint is the pod that has its address, or
//! else a workload of its own, outside the mesh.
//!
//! Slices that Kubernetes derives from selectors are left out before: the pods have the same information.
//!
//! Entry points: [`add_services`] and [`workloads`].

use std::collections::BTreeMap;

use super::context::Context;
use super::object::{
    EndpointSlice, LocalityText, Metadata, ObjectKey, Pod, Service, ServicePort, SliceEndpoint, SlicePort,
    WorkloadEntry,
};
use super::service;
use super::settings::Settings;
use super::store::Store;
use crate::model::{Health, NetworkMode, Origin, PortMapping, ServiceKey, Workload, WorkloadUid};

const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

/// What an address of a slice belongs to.
enum Owner<'a> {
    Pod(&'a Pod),
    /// A pod that is not known yet: no endpoint.
    UnknownPod,
    /// No pod.
    Outside,
}

/// The pod that `targetRef` names, or else the first that has the address as its own.
fn owner<'a>(slice: &EndpointSlice, endpoint: &SliceEndpoint, store: &'a Store) -> Owner<'a> {
    let pods = || {
        let pods = store.pods_at(endpoint.address).filter_map(|key| store.pod(key));
        pods.filter(|pod| !pod.is_finished())
    };
    let named = |pod: &&Pod| {
        pod.metadata.namespace == slice.metadata.namespace
            && endpoint.pod.as_ref() == Some(&pod.metadata.name)
    };
    match (pods().find(named).or_else(|| pods().find(|pod| !pod.host_network)), &endpoint.pod) {
        (Some(pod), _) => Owner::Pod(pod),
        (None, Some(_)) => Owner::UnknownPod,
        (None, None) => Owner::Outside,
    }
}

/// The service of a slice, and where the slice's endpoints listen for its ports.
fn served<'a>(slice: &EndpointSlice, store: &'a Store) -> Option<(&'a Service, Vec<PortMapping>)> {
    let contents = store.contents(&slice.metadata.namespace)?;
    let service = contents.services.get(&slice.service).filter(|service| !service.external_name)?;
    let mapping = |port: &ServicePort| {
        let same = |p: &&SlicePort| p.name == port.name && p.transport == port.transport;
        let target_port = slice.ports.iter().find(same)?.port;
        Some(PortMapping { service_port: port.port, target_port })
    };
    let mappings: Vec<_> = service::tcp_ports(service).filter_map(mapping).collect();
    (!mappings.is_empty()).then_some((service, mappings))
}

/// Adds the services whose slices list the pod. Ports that a selector has mapped already stay as they are.
pub(super) fn add_services(
    pod: &Pod,
    store: &Store,
    settings: &Settings,
    services: &mut BTreeMap<ServiceKey, Vec<PortMapping>>,
) {
    let slices =
        pod.addresses.iter().flat_map(|address| store.slices_at(*address).map(move |key| (address, key)));
    for (address, slice) in slices.filter_map(|(address, key)| Some((address, store.endpoint_slice(key)?))) {
        let Some((service, mappings)) = served(slice, store) else { continue };
        let means_pod = |endpoint: &SliceEndpoint| {
            endpoint.address == address.to_canonical()
                && matches!(owner(slice, endpoint, store), Owner::Pod(owner) if std::ptr::eq(owner, pod))
                && (endpoint.health != Health::Unhealthy || service.publish_not_ready)
        };
        if !slice.endpoints.iter().any(means_pod) {
            continue;
        }
        let key = service::key(&service.metadata.namespace, &service.metadata.name, settings);
        let mapped = services.entry(key).or_default();
        for mapping in mappings {
            if mapped.iter().all(|known| known.service_port != mapping.service_port) {
                mapped.push(mapping);
            }
        }
    }
}

/// The endpoints of a slice that do not belong to a pod.
pub(super) fn workloads<'a>(
    slice: &'a EndpointSlice,
    store: &'a Store,
    context: &'a Context<'a>,
) -> impl Iterator<Item = Workload> + 'a {
    let outside = |endpoint: &&SliceEndpoint| matches!(owner(slice, endpoint, store), Owner::Outside);
    let served = served(slice, store).into_iter();
    served.flat_map(move |(service, mappings)| {
        let settings = context.settings;
        let key = service::key(&service.metadata.namespace, &service.metadata.name, settings);
        let endpoints = slice.endpoints.iter().filter(outside);
        endpoints.map(move |endpoint| {
            let workload = context.endpoint(&as_entry(slice, endpoint, store));
            Workload {
                uid: uid(&slice.key(), endpoint, settings),
                node: endpoint.node.as_str().into(),
                // Anyone may list an address: it proves neither who connects nor where to tunnel to.
                network_mode: NetworkMode::HostNetwork,
                origin: Origin::Listed,
                health: endpoint.health,
                services: [(key.clone(), mappings.clone())].into(),
                // It runs on no node of the mesh.
                policies: Vec::new(),
                direct: true,
                same_node_tls: false,
                ..workload
            }
        })
    })
}

fn uid(slice: &ObjectKey, endpoint: &SliceEndpoint, settings: &Settings) -> WorkloadUid {
    let (cluster, ObjectKey { namespace, name, .. }) = (&settings.cluster, slice);
    let address = endpoint.address;
    WorkloadUid(format!("{cluster}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}").into())
}

/// The endpoint as a workload entry, with its service's name and without labels, so that no selector selects
/// it. Its locality is its zone's, or else its node's.
fn as_entry(slice: &EndpointSlice, endpoint: &SliceEndpoint, store: &Store) -> WorkloadEntry {
    let of_node = |name: &str| store.node(&endpoint.node)?.metadata.labels.get(name).cloned();
    let zone = Some(endpoint.zone.clone()).filter(|zone| !zone.is_empty());
    WorkloadEntry {
        metadata: Metadata {
            namespace: slice.metadata.namespace.clone(),
            name: slice.service.clone(),
            ..Metadata::default()
        },
        address: Some(endpoint.address),
        locality: LocalityText {
            region: of_node(REGION).unwrap_or_default(),
            zone: zone.or_else(|| of_node(ZONE)).unwrap_or_default(),
            subzone: String::new(),
        },
        ..WorkloadEntry::default()
    }
}
