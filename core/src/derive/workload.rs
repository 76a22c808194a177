//! Pods and workload entries → workloads: who they are, what they stand behind, which policies select them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::object::{Kind, Metadata, ObjectKey, Pod, PortRef, Transport, WorkloadEntry};
use super::store::{Contents, Labelled, Store, selects};
use super::{Condition, Settings, endpoint_slice, peer_authentication, service, service_entry};
use crate::enrolment::{self, DATAPLANE_MODE, exclusion};
use crate::model::{
    ExcludedPorts, Health, Locality, NetworkMode, PolicyKey, PortMapping, ServiceKey, TunnelProtocol,
    Workload, WorkloadKind, WorkloadUid,
};

/// Switches the direct path, on a namespace or a pod.
const DIRECT: &str = "ambit.dev/direct";

/// Says that a workload entry's machine takes HBONE.
const TUNNEL: &str = "networking.istio.io/tunnel";

/// The name of a pod's or workload entry's workload.
pub(super) fn uid(key: &ObjectKey, settings: &Settings) -> WorkloadUid {
    let (cluster, namespace, name) = (&settings.cluster, &key.namespace, &key.name);
    let text = match key.kind {
        Kind::WorkloadEntry => format!("{cluster}/networking.istio.io/WorkloadEntry/{namespace}/{name}"),
        _ => format!("{cluster}//Pod/{namespace}/{name}"),
    };
    WorkloadUid(text.into())
}

/// What there is to say about a pod: which of its annotations are mistaken.
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

/// What there is to say about a workload entry.
pub(super) fn entry_conditions(entry: &WorkloadEntry) -> Vec<Condition> {
    let object = ObjectKey {
        kind: Kind::WorkloadEntry,
        namespace: entry.metadata.namespace.clone(),
        name: entry.metadata.name.clone(),
    };
    let message = match entry.address {
        None if !entry.hostname.is_empty() => return vec![Condition::accepted(object)],
        None => "has no address, so nothing is sent to it".to_owned(),
        Some(address) if !is_peer_address(address) => format!("{address} cannot be the address of a peer"),
        Some(_) => return vec![Condition::accepted(object)],
    };
    vec![Condition { object, field: Some("spec.address".to_owned()), accepted: false, message }]
}

/// Where workloads of one namespace are derived.
pub(super) struct Context<'a> {
    store: &'a Store,
    pub(super) settings: &'a Settings,
    contents: Option<&'a Contents>,
    root: Option<&'a Contents>,
    peers: peer_authentication::Scope<'a>,
}

impl<'a> Context<'a> {
    pub(super) fn new(store: &'a Store, settings: &'a Settings, namespace: &str) -> Self {
        Self {
            store,
            settings,
            contents: store.contents(namespace),
            root: store.contents(&settings.root_namespace).filter(|_| namespace != settings.root_namespace),
            peers: peer_authentication::Scope::of(store, settings, namespace),
        }
    }

    /// A pod's workload. A finished pod has none: its address may already be another's. Neither has one that
    /// is not scheduled; one that is and has no address yet is known, so that its node can prepare.
    pub(super) fn pod(&self, pod: &Pod) -> Option<Workload> {
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
        let base = self.base(&pod.metadata, Kind::Pod, pod, &workload_name);
        Some(Workload {
            service_account: or_default(&pod.service_account),
            node: pod.node.as_str().into(),
            network_mode: if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
            addresses: distinct(&pod.addresses),
            protocol: self.pod_protocol(pod),
            health: health(pod),
            services: {
                let mut services = self.services(pod, port_named);
                services.extend(self.entries(pod, |_| None));
                endpoint_slice::add_services(pod, self.store, self.settings, &mut services);
                services
            },
            locality: self.pod_locality(pod),
            kind,
            probe_ports: probes.into_iter().collect(),
            excluded_ports: exclusion::read(&pod.metadata.annotations).0,
            ..base
        })
    }

    /// A workload entry's workload.
    pub(super) fn entry(&self, entry: &WorkloadEntry) -> Workload {
        let base = self.base(&entry.metadata, Kind::WorkloadEntry, entry, &entry.metadata.name);
        let network = if entry.network.is_empty() { &self.settings.network } else { &entry.network };
        let enrolled = entry.label(TUNNEL) == Some("http")
            || entry.label(DATAPLANE_MODE).and_then(enrolment::mode) == Some(true);
        Workload {
            service_account: or_default(&entry.service_account),
            network: network.as_str().into(),
            addresses: entry
                .address
                .filter(|address| is_peer_address(*address))
                .iter()
                .map(IpAddr::to_canonical)
                .collect(),
            protocol: if enrolled { TunnelProtocol::Hbone } else { TunnelProtocol::None },
            services: {
                let named = |name: &str| entry.ports.get(name).copied();
                let mut services = self.services(entry, named);
                services.extend(self.entries(entry, named));
                services
            },
            locality: Locality {
                region: entry.locality.region.as_str().into(),
                zone: entry.locality.zone.as_str().into(),
                subzone: entry.locality.subzone.as_str().into(),
            },
            capacity: entry.weight.filter(|weight| *weight > 0).unwrap_or(1),
            hostname: Some(entry.hostname.as_str()).filter(|name| !name.is_empty()).map(Into::into),
            ..base
        }
    }

    /// What pods and workload entries have in common.
    fn base(&self, metadata: &Metadata, kind: Kind, labels: &impl Labelled, workload_name: &str) -> Workload {
        let settings = self.settings;
        let key = ObjectKey { kind, namespace: metadata.namespace.clone(), name: metadata.name.clone() };
        let first = |names: &[&str]| {
            names.iter().find_map(|name| labels.label(name).filter(|value| !value.is_empty()))
        };
        let canonical_name = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
        let canonical_revision =
            ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
        Workload {
            uid: uid(&key, settings),
            name: metadata.name.as_str().into(),
            namespace: metadata.namespace.as_str().into(),
            service_account: "default".into(),
            trust_domain: settings.trust_domain.clone(),
            node: "".into(),
            cluster: settings.cluster.as_str().into(),
            network: settings.network.as_str().into(),
            network_mode: NetworkMode::Standard,
            addresses: Vec::new(),
            protocol: TunnelProtocol::None,
            health: Health::Healthy,
            services: BTreeMap::new(),
            policies: self.policies(labels),
            waypoint: None,
            locality: Locality::default(),
            capacity: 1,
            kind: WorkloadKind::Pod,
            workload_name: workload_name.into(),
            canonical_name: first(&canonical_name).unwrap_or(workload_name).into(),
            canonical_revision: first(&canonical_revision).unwrap_or("latest").into(),
            probe_ports: Vec::new(),
            excluded_ports: ExcludedPorts::default(),
            hostname: None,
            direct: self.direct(labels),
            same_node_tls: self.peers.same_node_tls(labels),
            trust_domain_aliases: settings.trust_domain_aliases.clone(),
        }
    }

    /// Whether the direct path may be taken: the workload's label decides, else its namespace's.
    fn direct(&self, labels: &impl Labelled) -> bool {
        let namespace = self.contents.and_then(|contents| contents.namespace.as_ref());
        let by_namespace = || switch(namespace?.metadata.labels.get(DIRECT).map(String::as_str));
        switch(labels.label(DIRECT)).or_else(by_namespace).unwrap_or(true)
    }

    /// Where a pod runs: what it says itself, else what its node does.
    fn pod_locality(&self, pod: &Pod) -> Locality {
        let node = self.store.node(&pod.node);
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

    fn pod_protocol(&self, pod: &Pod) -> TunnelProtocol {
        let namespace = self.contents.and_then(|contents| contents.namespace.as_ref());
        let subject = enrolment::Subject {
            namespace: &pod.metadata.namespace,
            namespace_labels: namespace.map(|namespace| &namespace.metadata.labels),
            pod_labels: Some(&pod.metadata.labels),
            host_network: pod.host_network,
            finished: pod.is_finished(),
            system_namespace: &self.settings.system_namespace,
        };
        let ready =
            !self.settings.enrolled_by_annotation || enrolment::is_redirected(&pod.metadata.annotations);
        if ready && subject.judge().is_desired() { TunnelProtocol::Hbone } else { TunnelProtocol::None }
    }

    /// The services of the namespace that select the workload.
    fn services(
        &self,
        labels: &impl Labelled,
        port_named: impl Fn(&str) -> Option<u16>,
    ) -> BTreeMap<ServiceKey, Vec<PortMapping>> {
        let services = self.contents.into_iter().flat_map(|contents| contents.services.values());
        let selecting =
            services.filter(|s| !s.external_name && !s.selector.is_empty() && selects(&s.selector, labels));
        let mapped = selecting.map(|s| {
            let key = service::key(&s.metadata.namespace, &s.metadata.name, self.settings);
            (key, service::mappings(s, &port_named))
        });
        mapped.collect()
    }

    /// The services of the namespace's service entries that select the workload. `named` is what the workload
    /// itself says of a port's name.
    fn entries(
        &self,
        labels: &impl Labelled,
        named: impl Fn(&str) -> Option<u16>,
    ) -> BTreeMap<ServiceKey, Vec<PortMapping>> {
        let entries = self.contents.into_iter().flat_map(|contents| contents.service_entries.values());
        let selecting = entries.filter(|e| !e.selector.is_empty() && selects(&e.selector, labels));
        let claimed = selecting.flat_map(|entry| {
            let claims = service_entry::Claims::of(entry, self.store, self.settings);
            let mappings = service_entry::mappings(entry, &named);
            claims.won().map(move |key| (key, mappings.clone())).collect::<Vec<_>>()
        });
        claimed.collect()
    }

    /// The policies with selectors that select the workload: its namespace's and the root namespace's.
    fn policies(&self, labels: &impl Labelled) -> Vec<PolicyKey> {
        let candidates = self
            .contents
            .into_iter()
            .chain(self.root)
            .flat_map(|contents| contents.authorization_policies.values());
        let selecting = candidates.filter(|policy| {
            super::authorization::lists_workloads(policy) && selects(&policy.selector, labels)
        });
        let listed = selecting.map(|policy| PolicyKey {
            namespace: policy.metadata.namespace.as_str().into(),
            name: policy.metadata.name.as_str().into(),
        });
        let listed: BTreeSet<PolicyKey> = listed.chain(self.peers.policy_for(labels)).collect();
        listed.into_iter().collect()
    }
}

/// What a label that switches something says, if it says anything that is known.
fn switch(value: Option<&str>) -> Option<bool> {
    match value? {
        "enabled" => Some(true),
        "disabled" => Some(false),
        _ => None,
    }
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

pub(super) fn is_peer_address(address: IpAddr) -> bool {
    let address = address.to_canonical();
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
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

fn or_default(service_account: &str) -> Arc<str> {
    if service_account.is_empty() { "default".into() } else { service_account.into() }
}
