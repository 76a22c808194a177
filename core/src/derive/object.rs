//! The objects users write, parsed and neutral: whatever read them (YAML files or the Kubernetes API) fills
//! these in.
//!
//! Everything that can be wrong in one field alone is wrong at the edge and never gets here: addresses,
//! ports, modes are values. What needs other objects or settings to be judged is text here and judged by the
//! derivation.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::model::{Affinity, Health, Identity, IpBlock};

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Namespace(Namespace),
    Node(Node),
    Pod(Pod),
    Service(Service),
    EndpointSlice(EndpointSlice),
    WorkloadEntry(WorkloadEntry),
    ServiceEntry(ServiceEntry),
    AuthorizationPolicy(AuthorizationPolicy),
    PeerAuthentication(PeerAuthentication),
}

impl Object {
    /// What names it.
    pub fn key(&self) -> ObjectKey {
        let (kind, metadata) = match self {
            Self::Namespace(o) => (Kind::Namespace, &o.metadata),
            Self::Node(o) => (Kind::Node, &o.metadata),
            Self::Pod(o) => (Kind::Pod, &o.metadata),
            Self::Service(o) => (Kind::Service, &o.metadata),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, &o.metadata),
            Self::WorkloadEntry(o) => (Kind::WorkloadEntry, &o.metadata),
            Self::ServiceEntry(o) => (Kind::ServiceEntry, &o.metadata),
            Self::AuthorizationPolicy(o) => (Kind::AuthorizationPolicy, &o.metadata),
            Self::PeerAuthentication(o) => (Kind::PeerAuthentication, &o.metadata),
        };
        ObjectKey { kind, namespace: metadata.namespace.clone(), name: metadata.name.clone() }
    }
}

/// The kinds that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    WorkloadEntry,
    ServiceEntry,
    AuthorizationPolicy,
    PeerAuthentication,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Names an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub kind: Kind,
    /// Empty for kinds without namespace.
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// What happened to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectEvent {
    /// It is new or different.
    Put(Box<Object>),
    /// It is gone.
    Delete(ObjectKey),
}

/// What every object has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Empty for kinds without namespace.
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// `creationTimestamp` in seconds since 1970, where there is one.
    pub created: Option<i64>,
}

/// Labels that must all be there with these values.
pub type Selector = BTreeMap<String, String>;

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub metadata: Metadata,
}

/// A node: its labels say where its pods are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub metadata: Metadata,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub metadata: Metadata,
    /// `spec.serviceAccountName`; empty means `default`.
    pub service_account: String,
    /// `spec.nodeName`; empty while it is not scheduled.
    pub node: String,
    pub host_network: bool,
    /// The controlling owner reference.
    pub owner: Option<Owner>,
    /// Ports of its containers (and of init containers that keep running).
    pub ports: Vec<ContainerPort>,
    /// Ports of HTTP, gRPC and TCP probes.
    pub probes: Vec<PortRef>,
    pub phase: Phase,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// The condition `Ready`.
    pub ready: bool,
    /// It has a `deletionTimestamp`.
    pub terminating: bool,
}

impl Pod {
    /// Whether it has ended for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }
}

/// The controlling owner of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub kind: String,
    pub name: String,
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    Pending,
    #[default]
    Running,
    Succeeded,
    Failed,
    Unknown,
}

/// A port that a container declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerPort {
    /// Empty when it has none.
    pub name: String,
    pub port: u16,
    pub transport: Transport,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    Number(u16),
    Name(String),
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub metadata: Metadata,
    /// `type: ExternalName`: a DNS alias, nothing to the mesh.
    pub external_name: bool,
    /// `spec.clusterIPs` (or `clusterIP`); empty for headless services.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` and the addresses of `status.loadBalancer.ingress`.
    pub external_ips: Vec<IpAddr>,
    /// Empty: no endpoints are derived.
    pub selector: Selector,
    pub ports: Vec<ServicePort>,
    pub publish_not_ready: bool,
    /// `internalTrafficPolicy: Local`.
    pub node_local: bool,
    pub traffic_distribution: TrafficDistribution,
    /// `spec.sessionAffinity`.
    pub affinity: Affinity,
}

/// `spec.trafficDistribution` of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficDistribution {
    #[default]
    Unset,
    /// `PreferClose` or `PreferSameZone`.
    PreferSameZone,
    /// `PreferSameNode`.
    PreferSameNode,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when it has none.
    pub name: String,
    pub port: u16,
    /// Where workloads listen; the same port where nothing is said.
    pub target: PortRef,
    pub transport: Transport,
    /// `appProtocol`; empty when not said.
    pub app_protocol: String,
}

/// Endpoints of a service, listed by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    pub metadata: Metadata,
    /// The label `kubernetes.io/service-name`: a service of the same namespace.
    pub service: String,
    /// Kubernetes made it of the service's selector, so it says what the pods say.
    pub of_selector: bool,
    pub endpoints: Vec<SliceEndpoint>,
    pub ports: Vec<SlicePort>,
}

impl EndpointSlice {
    /// What names it.
    pub(super) fn key(&self) -> ObjectKey {
        let Metadata { namespace, name, .. } = &self.metadata;
        ObjectKey { kind: Kind::EndpointSlice, namespace: namespace.clone(), name: name.clone() }
    }
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub address: IpAddr,
    /// What `ready`, `serving` and `terminating` come to.
    pub health: Health,
    /// `nodeName`; empty when not said.
    pub node: String,
    /// Empty when not said.
    pub zone: String,
    /// The name of the pod that `targetRef` names.
    pub pod: Option<String>,
}

/// Where the endpoints of a slice listen for the service's port of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlicePort {
    /// Empty when it has none.
    pub name: String,
    pub port: u16,
    pub transport: Transport,
}

/// A workload that is no pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadEntry {
    pub metadata: Metadata,
    /// `None` for entries named by host name.
    pub address: Option<IpAddr>,
    /// The host name of one that is reached by name; empty for the others.
    pub hostname: String,
    pub ports: BTreeMap<String, u16>,
    /// `spec.labels`.
    pub labels: BTreeMap<String, String>,
    pub network: String,
    pub locality: LocalityText,
    pub weight: Option<u32>,
    /// Empty means `default`.
    pub service_account: String,
}

/// Services by host name that Kubernetes knows nothing of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    pub metadata: Metadata,
    /// One service each. A host may begin with `*.`.
    pub hosts: Vec<String>,
    /// The addresses that clients use for any of the hosts.
    pub addresses: Vec<IpBlock>,
    pub ports: Vec<EntryPort>,
    pub resolution: Resolution,
    /// Endpoints written out; their metadata is the entry's.
    pub endpoints: Vec<WorkloadEntry>,
    /// Selects pods and workload entries as endpoints; empty selects none.
    pub selector: Selector,
    /// Identities that may answer besides the endpoints' own.
    pub subject_alt_names: Vec<Identity>,
    /// Whether `exportTo` names less than all namespaces.
    pub restricted: bool,
}

/// A port of a service entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPort {
    pub name: String,
    pub port: u16,
    /// Where endpoints listen that do not say themselves.
    pub target: u16,
    pub transport: Transport,
    /// In lower case: `http`, `tls`, …
    pub protocol: String,
}

/// How a service entry's endpoints are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The client chose the address itself.
    #[default]
    None,
    /// By the endpoints' addresses.
    Static,
    /// By the endpoints' host names, or the hosts themselves.
    Dns,
}

/// `region/zone/subzone`, later parts optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalityText {
    pub region: String,
    pub zone: String,
    pub subzone: String,
}

/// Who may connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    pub metadata: Metadata,
    /// Empty selects the whole namespace (in the root namespace: the mesh).
    pub selector: Selector,
    pub target_refs: Vec<TargetRef>,
    pub action: PolicyAction,
    pub rules: Vec<PolicyRule>,
}

/// What a policy is attached to instead of workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetRef {
    pub group: String,
    pub kind: String,
    pub name: String,
}

/// `spec.action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyAction {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

/// A rule: any source, any operation, all conditions. An absent list is no condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    pub from: Vec<Source>,
    pub to: Vec<Operation>,
    pub when: Vec<When>,
}

/// `from[].source`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub ip_blocks: Vec<IpBlock>,
    pub not_ip_blocks: Vec<IpBlock>,
    pub remote_ip_blocks: Vec<IpBlock>,
    pub not_remote_ip_blocks: Vec<IpBlock>,
}

/// `to[].operation`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<u16>,
    pub not_ports: Vec<u16>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// `when[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When {
    pub key: String,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}

/// Whether peers must prove who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerAuthentication {
    pub metadata: Metadata,
    /// Empty selects the whole namespace (in the root namespace: the mesh).
    pub selector: Selector,
    pub mode: MtlsMode,
    /// `portLevelMtls`, by workload port; only with a selector.
    pub port_modes: BTreeMap<u16, MtlsMode>,
    /// The annotation `ambit.dev/same-node-tls`: whether TLS is demanded on the same node too. `None`: not
    /// said.
    pub same_node_tls: Option<bool>,
}

/// `mtls.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// What the next wider policy says.
    #[default]
    Unset,
    /// Plaintext only; taken as `Permissive` in ambient mode.
    Disable,
    Permissive,
    Strict,
}
