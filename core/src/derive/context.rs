//! What all kinds of workloads of one namespace are derived from: [`Context`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::object::{Kind, Metadata, ObjectKey, WorkloadEntry};
use super::settings::Settings;
use super::store::{Contents, Labelled, Store, selects};
use super::{authorization, peer_authentication};
use crate::enrolment::{self, DATAPLANE_MODE};
use crate::model::{
    Claim, ExcludedPorts, Exported, Health, Locality, NetworkMode, Origin, PolicyKey, TunnelProtocol,
    Workload, WorkloadKind, WorkloadUid,
};

/// Has a workload refuse what did not pass its waypoint, on a namespace or a pod.
const REQUIRE_WAYPOINT: &str = "ambit.dev/require-waypoint";

/// Switches the direct path, on a namespace or a pod.
const DIRECT: &str = "ambit.dev/direct";

/// The label of a workload entry whose machine accepts HBONE.
const TUNNEL: &str = "networking.istio.io/tunnel";

/// The uid of a pod's or workload entry's workload.
pub(super) fn uid(key: &ObjectKey, settings: &Settings) -> WorkloadUid {
    let (cluster, namespace, name) = (&settings.cluster, &key.namespace, &key.name);
    let text = match key.kind {
        Kind::WorkloadEntry => format!("{cluster}/networking.istio.io/WorkloadEntry/{namespace}/{name}"),
        Kind::Pod => format!("{cluster}//Pod/{namespace}/{name}"),
        // No workloads: `Dirty` marks none of them as one.
        Kind::Namespace
        | Kind::Node
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::ServiceEntry
        | Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::Gateway
        | Kind::HTTPRoute
        | Kind::GRPCRoute
        | Kind::TLSRoute
        | Kind::TCPRoute
        | Kind::ReferenceGrant => format!("{cluster}//{}/{namespace}/{name}", key.kind),
    };
    WorkloadUid(text.into())
}

/// A namespace, and what else its workloads depend on.
pub(super) struct Context<'a> {
    pub(super) store: &'a Store,
    pub(super) settings: &'a Settings,
    pub(super) contents: Option<&'a Contents>,
    /// The root namespace, unless it is this one.
    root: Option<&'a Contents>,
    peers: peer_authentication::Candidates<'a>,
}

impl<'a> Context<'a> {
    pub(super) fn new(store: &'a Store, settings: &'a Settings, namespace: &str) -> Self {
        Self {
            store,
            settings,
            contents: store.contents(namespace),
            root: store.contents(&settings.root_namespace).filter(|_| namespace != settings.root_namespace),
            peers: peer_authentication::Candidates::of(store, settings, namespace),
        }
    }

    /// The workload of a workload entry or of an inline endpoint, without services.
    pub(super) fn endpoint(&self, entry: &WorkloadEntry) -> Workload {
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
            locality: Locality {
                region: entry.locality.region.as_str().into(),
                zone: entry.locality.zone.as_str().into(),
                subzone: entry.locality.subzone.as_str().into(),
            },
            capacity: entry.weight.filter(|weight| *weight > 0).unwrap_or(1),
            hostname: Some(entry.hostname.as_str()).filter(|name| !name.is_empty()).map(Into::into),
            origin: Origin::Entry(Claim { created: entry.metadata.created, exported: Exported::Everywhere }),
            ..base
        }
    }

    /// A workload with what pods and workload entries have in common.
    pub(super) fn base(
        &self,
        metadata: &Metadata,
        kind: Kind,
        labels: &impl Labelled,
        workload_name: &str,
    ) -> Workload {
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
            require_waypoint: self.require_waypoint(labels),
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
            origin: Origin::Kubernetes,
        }
    }

    /// Whether the direct path is enabled: by the workload's label, else by its namespace's.
    fn direct(&self, labels: &impl Labelled) -> bool {
        self.switched(labels, DIRECT).unwrap_or(true)
    }

    /// A value that is not known asks for it too: somebody meant to close something.
    fn require_waypoint(&self, labels: &impl Labelled) -> bool {
        let said = labels.label(REQUIRE_WAYPOINT).or_else(|| self.namespace_label(REQUIRE_WAYPOINT));
        said.is_some_and(|said| said != "disabled")
    }

    /// What the workload's label says, else its namespace's.
    fn switched(&self, labels: &impl Labelled, name: &str) -> Option<bool> {
        switch(labels.label(name)).or_else(|| switch(self.namespace_label(name)))
    }

    fn namespace_label(&self, name: &str) -> Option<&str> {
        let namespace = self.contents?.namespace.as_ref()?;
        namespace.metadata.labels.get(name).map(String::as_str)
    }

    /// The policies of its namespace and of the root namespace whose selectors select the workload.
    fn policies(&self, labels: &impl Labelled) -> Vec<PolicyKey> {
        let candidates = self
            .contents
            .into_iter()
            .chain(self.root)
            .flat_map(|contents| contents.authorization_policies.values());
        let selecting = candidates.filter(|policy| {
            authorization::is_named_by_workloads(policy) && selects(&policy.selector, labels)
        });
        let named = selecting.map(|policy| PolicyKey {
            namespace: policy.metadata.namespace.as_str().into(),
            name: policy.metadata.name.as_str().into(),
        });
        let named: BTreeSet<PolicyKey> = named.chain(self.peers.policy_for(labels)).collect();
        named.into_iter().collect()
    }
}

/// The value of a label that enables or disables something, if the value is known.
fn switch(value: Option<&str>) -> Option<bool> {
    match value? {
        "enabled" => Some(true),
        "disabled" => Some(false),
        _ => None,
    }
}

/// Whether connections can be sent to the address.
pub(super) fn is_peer_address(address: IpAddr) -> bool {
    let address = address.to_canonical();
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// The name of a service account; empty means `default`.
pub(super) fn or_default(service_account: &str) -> Arc<str> {
    if service_account.is_empty() { "default".into() } else { service_account.into() }
}
