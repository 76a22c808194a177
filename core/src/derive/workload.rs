//! Pods and workload entries → workloads, and the services they are endpoints of.
//!
//! Entry points: [`pod`] and [`entry`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::condition::Condition;
use super::context::{Context, is_peer_address, or_default};
use super::object::{Kind, ObjectKey, Pod, PortRef, Service, ServiceEntry, Transport, WorkloadEntry};
use super::store::{Labelled, selects};
use super::{contested, endpoint_slice, service, service_entry, waypoint};
use crate::enrolment::{self, Account, exclusion};
use crate::mesh::Mesh;
use crate::model::{
    Health, Locality, NetworkMode, PortMapping, ServiceKey, TunnelProtocol, Workload, WorkloadKind,
};

/// The conditions of a pod: mistakes in its annotations.
pub(super) fn pod_conditions(key: &ObjectKey, pod: &Pod) -> Vec<Condition> {
    let (_, mistakes) = exclusion::read(&pod.metadata.annotations);
    let conditions = mistakes.into_iter().map(|mistake| Condition {
        object: key.clone(),
        field: Some(format!("metadata.annotations[{}]", mistake.annotation)),
        accepted: true,
        message: mistake.message,
    });
    conditions.collect()
}

/// The conditions of a workload entry. The mesh has its workload already.
pub(super) fn entry_conditions(
    entry: &WorkloadEntry,
    workload: Option<&Workload>,
    mesh: &Mesh,
) -> Vec<Condition> {
    let object = ObjectKey {
        kind: Kind::WorkloadEntry,
        namespace: entry.metadata.namespace.clone(),
        name: entry.metadata.name.clone(),
    };
    let condition = |accepted, message| Condition {
        object: object.clone(),
        field: Some("spec.address".to_owned()),
        accepted,
        message,
    };
    let message = match entry.address {
        None if !entry.hostname.is_empty() => return vec![Condition::accepted(object)],
        None => "has no address, so nothing is sent to it".to_owned(),
        Some(address) if !is_peer_address(address) => format!("{address} cannot be the address of a peer"),
        Some(address) => {
            let lost = workload.map(|workload| contested::of_workload(mesh, workload, address));
            let messages = lost.into_iter().flat_map(|lost| lost.messages);
            // It still serves where it is an endpoint.
            let lost: Vec<_> = messages.map(|message| condition(true, message)).collect();
            return if lost.is_empty() { vec![Condition::accepted(object)] } else { lost };
        }
    };
    vec![condition(false, message)]
}

/// A pod's workload. A finished pod has none: its address may be another pod's already. A pod that is not
/// scheduled has none either. A scheduled pod without an address has one, so that its node can prepare.
pub(super) fn pod(context: &Context<'_>, pod: &Pod) -> Option<Workload> {
    if pod.is_finished() || (pod.node.is_empty() && pod.addresses.is_empty()) {
        return None;
    }
    let port_named = |name: &str| {
        pod.ports.iter().find(|p| p.transport == Transport::Tcp && p.name == name).map(|p| p.port)
    };
    let probes = pod.probes.iter().filter_map(|probe| match probe {
        PortRef::Number(number) => Some(*number),
        PortRef::Name(name) => port_named(name),
    });
    let probes: BTreeSet<u16> = probes.collect();
    let (kind, workload_name) = managed_by(pod);
    let base = context.base(&pod.metadata, Kind::Pod, pod, &workload_name);
    let mut services = services(context, pod, |service| service::mappings(service, port_named));
    services.extend(entries(context, pod, |entry| service_entry::pod_mappings(entry, port_named)));
    endpoint_slice::add_services(pod, context.store, context.settings, &mut services);
    let namespace = &pod.metadata.namespace;
    Some(Workload {
        service_account: match account(context, pod) {
            Account::Named => or_default(&pod.service_account),
            Account::Missing | Account::Static => "".into(),
        },
        node: pod.node.as_str().into(),
        network_mode: if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
        addresses: distinct(&pod.addresses),
        protocol: pod_protocol(context, pod),
        health: health(pod),
        waypoint: waypoint::of_workload(context.store, context.settings, namespace, pod, &services),
        services,
        locality: pod_locality(context, pod),
        kind,
        probe_ports: probes.into_iter().collect(),
        excluded_ports: exclusion::read(&pod.metadata.annotations).0,
        ..base
    })
}

/// A workload entry's workload.
pub(super) fn entry(context: &Context<'_>, entry: &WorkloadEntry) -> Workload {
    let named = |name: &str| entry.ports.get(name).copied();
    let mut services = services(context, entry, |service| service::entry_mappings(service, named));
    services.extend(entries(context, entry, |selecting| service_entry::mappings(selecting, named)));
    let namespace = &entry.metadata.namespace;
    let waypoint = waypoint::of_workload(context.store, context.settings, namespace, entry, &services);
    Workload { services, waypoint, ..context.endpoint(entry) }
}

/// Where a pod runs, by its own labels or else its node's.
fn pod_locality(context: &Context<'_>, pod: &Pod) -> Locality {
    let node = context.store.node(&pod.node);
    let label = |name: &str| {
        let of_node = || node.and_then(|node| node.metadata.labels.get(name)).map(String::as_str);
        pod.label(name).or_else(of_node).unwrap_or_default().into()
    };
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}

/// What vouches for a pod's identity.
fn account(context: &Context<'_>, pod: &Pod) -> Account {
    if context.settings.identity_by_account {
        Account::of(&pod.service_account, &pod.metadata.annotations)
    } else {
        Account::Named
    }
}

fn pod_protocol(context: &Context<'_>, pod: &Pod) -> TunnelProtocol {
    let namespace = context.contents.and_then(|contents| contents.namespace.as_ref());
    let candidate = enrolment::Candidate {
        namespace: &pod.metadata.namespace,
        namespace_labels: namespace.map(|namespace| &namespace.metadata.labels),
        pod_labels: Some(&pod.metadata.labels),
        account: account(context, pod),
        host_network: pod.host_network,
        finished: pod.is_finished(),
        system_namespace: &context.settings.system_namespace,
    };
    let ready =
        !context.settings.enrolled_by_annotation || enrolment::is_redirected(&pod.metadata.annotations);
    if ready && candidate.evaluate().is_desired() { TunnelProtocol::Hbone } else { TunnelProtocol::None }
}

/// The services of the namespace that select the workload.
fn services(
    context: &Context<'_>,
    labels: &impl Labelled,
    mappings: impl Fn(&Service) -> Vec<PortMapping>,
) -> BTreeMap<ServiceKey, Vec<PortMapping>> {
    let services = context.contents.into_iter().flat_map(|contents| contents.services.values());
    let selecting =
        services.filter(|s| !s.external_name && !s.selector.is_empty() && selects(&s.selector, labels));
    let mapped = selecting.map(|s| {
        let key = service::key(&s.metadata.namespace, &s.metadata.name, context.settings);
        (key, mappings(s))
    });
    mapped.collect()
}

/// The services of the namespace's service entries that select the workload.
fn entries(
    context: &Context<'_>,
    labels: &impl Labelled,
    mappings: impl Fn(&ServiceEntry) -> Vec<PortMapping>,
) -> BTreeMap<ServiceKey, Vec<PortMapping>> {
    let entries = context.contents.into_iter().flat_map(|contents| contents.service_entries.values());
    let selecting = entries.filter(|e| !e.selector.is_empty() && selects(&e.selector, labels));
    let claimed = selecting.flat_map(|entry| {
        let claims = service_entry::Claims::of(entry, context.store, context.settings);
        let mappings = mappings(entry);
        claims.won().map(move |key| (key, mappings.clone())).collect::<Vec<_>>()
    });
    claimed.collect()
}

fn health(pod: &Pod) -> Health {
    match (pod.ready, pod.terminating) {
        (false, _) => Health::Unhealthy,
        (true, false) => Health::Healthy,
        (true, true) => Health::Draining,
    }
}

/// What manages a pod, as metrics name it.
fn managed_by(pod: &Pod) -> (WorkloadKind, String) {
    let unmanaged = || (WorkloadKind::Pod, pod.metadata.name.clone());
    let Some(owner) = &pod.owner else { return unmanaged() };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = pod.label("pod-template-hash").filter(|hash| !hash.is_empty());
            let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'));
            deployment.map_or_else(unmanaged, |name| (WorkloadKind::Deployment, name.to_owned()))
        }
        "Deployment" => (WorkloadKind::Deployment, owner.name.clone()),
        "CronJob" => (WorkloadKind::CronJob, owner.name.clone()),
        "Job" => match owner.name.rsplit_once('-') {
            Some((name, time))
                if (8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit()) =>
            {
                (WorkloadKind::CronJob, name.to_owned())
            }
            _ => (WorkloadKind::Job, owner.name.clone()),
        },
        _ => unmanaged(),
    }
}

fn distinct(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut distinct = Vec::with_capacity(addresses.len());
    for address in addresses.iter().map(IpAddr::to_canonical) {
        if !distinct.contains(&address) {
            distinct.push(address);
        }
    }
    distinct
}
