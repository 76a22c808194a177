//! The objects that users write, parsed from YAML files or read from the Kubernetes API.
//!
//! A mistake in one field alone is found by the parser: addresses, ports and modes are values here. What can
//! be checked only with other objects or settings is text here, and checked by the derivation.
//!
//! Entry point: [`Object`]; its kinds: [`Kind`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::model::{Affinity, Health, Identity, IpBlock};

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `v1` Namespace.
    Namespace(Namespace),
    /// `v1` Node.
    Node(Node),
    /// `v1` Pod.
    Pod(Pod),
    /// `v1` Service.
    Service(Service),
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// `networking.istio.io` WorkloadEntry.
    WorkloadEntry(WorkloadEntry),
    /// `networking.istio.io` ServiceEntry.
    ServiceEntry(ServiceEntry),
    /// `security.istio.io` AuthorizationPolicy.
    AuthorizationPolicy(AuthorizationPolicy),
    /// `security.istio.io` PeerAuthentication.
    PeerAuthentication(PeerAuthentication),
}

impl Object {
    /// The object's kind, namespace and name.
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

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident,)*) => {
        /// The kinds of objects that are read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The kind as objects and metrics name it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)* }
            }
        }
    };
}

kinds! {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `networking.istio.io` WorkloadEntry.
    WorkloadEntry,
    /// `networking.istio.io` ServiceEntry.
    ServiceEntry,
    /// `security.istio.io` AuthorizationPolicy.
    AuthorizationPolicy,
    /// `security.istio.io` PeerAuthentication.
    PeerAuthentication,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The object's kind.
    pub kind: Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Unique among the kind's objects in the namespace.
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

/// A change of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectEvent {
    /// The object is new or changed.
    Put(Box<Object>),
    /// The object was deleted.
    Delete(ObjectKey),
}

/// The metadata of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Empty for cluster-scoped kinds.
    pub namespace: String,
    /// Unique among the kind's objects in the namespace.
    pub name: String,
    /// What selectors select by.
    pub labels: BTreeMap<String, String>,
    /// Settings that selectors do not see.
    pub annotations: BTreeMap<String, String>,
    /// `creationTimestamp` in seconds since 1970, where there is one.
    pub created: Option<i64>,
}

/// Labels that must all be present with these values.
pub type Selector = BTreeMap<String, String>;

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata`.
    pub metadata: Metadata,
}

/// A node: its labels give its pods' locality.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `metadata`.
    pub metadata: Metadata,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.serviceAccountName`; empty means `default`.
    pub service_account: String,
    /// `spec.nodeName`; empty while it is not scheduled.
    pub node: String,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// The controlling owner reference.
    pub owner: Option<Owner>,
    /// Ports of its containers (and of sidecars: init containers that restart).
    pub ports: Vec<ContainerPort>,
    /// Ports of HTTP, gRPC and TCP probes.
    pub probes: Vec<PortRef>,
    /// `status.phase`.
    pub phase: Phase,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// Whether the condition `Ready` is true.
    pub ready: bool,
    /// Whether it has a `deletionTimestamp`.
    pub terminating: bool,
}

impl Pod {
    /// Whether all its containers have ended for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }
}

/// The controlling owner of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// For example `ReplicaSet`.
    pub kind: String,
    /// The owner's name, in the pod's namespace.
    pub name: String,
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not all containers have started.
    Pending,
    /// At least one container runs.
    #[default]
    Running,
    /// All containers have ended successfully.
    Succeeded,
    /// All containers have ended, one of them with a failure.
    Failed,
    /// The node does not report.
    Unknown,
}

/// A port that a container declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerPort {
    /// Empty if it has none.
    pub name: String,
    /// `containerPort`.
    pub port: u16,
    /// `protocol`.
    pub transport: Transport,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// The default.
    #[default]
    Tcp,
    /// Not carried by the mesh.
    Udp,
    /// Not carried by the mesh.
    Sctp,
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRef {
    /// The port number.
    Number(u16),
    /// The name of one of the pod's ports.
    Name(String),
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `metadata`.
    pub metadata: Metadata,
    /// `type: ExternalName`: a DNS alias, which the mesh does not see.
    pub external_name: bool,
    /// `spec.clusterIPs` (or `clusterIP`); empty for headless services.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` and the addresses of `status.loadBalancer.ingress`.
    pub external_ips: Vec<IpAddr>,
    /// `spec.selector`; empty selects no pods.
    pub selector: Selector,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `internalTrafficPolicy: Local`.
    pub node_local: bool,
    /// `spec.trafficDistribution`, or Istio's annotation.
    pub traffic_distribution: TrafficDistribution,
    /// `spec.sessionAffinity`.
    pub affinity: Affinity,
}

/// `spec.trafficDistribution` of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficDistribution {
    /// No preference.
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
    /// Empty if it has none.
    pub name: String,
    /// The port that clients connect to.
    pub port: u16,
    /// `targetPort`, by default the same port.
    pub target: PortRef,
    /// `protocol`.
    pub transport: Transport,
    /// `appProtocol`; empty if not set.
    pub app_protocol: String,
}

/// Endpoints of a service, listed by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// `metadata`.
    pub metadata: Metadata,
    /// The label `kubernetes.io/service-name`: a service of the same namespace.
    pub service: String,
    /// Kubernetes derived it from the service's selector, so it adds nothing to the pods.
    pub of_selector: bool,
    /// One for each address.
    pub endpoints: Vec<SliceEndpoint>,
    /// The ports of all endpoints.
    pub ports: Vec<SlicePort>,
}

impl EndpointSlice {
    /// The object's key.
    pub(super) fn key(&self) -> ObjectKey {
        let Metadata { namespace, name, .. } = &self.metadata;
        ObjectKey { kind: Kind::EndpointSlice, namespace: namespace.clone(), name: name.clone() }
    }
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// One of `addresses`.
    pub address: IpAddr,
    /// From the conditions `ready`, `serving` and `terminating`.
    pub health: Health,
    /// `nodeName`; empty if not set.
    pub node: String,
    /// `zone`; empty if not set.
    pub zone: String,
    /// The name of the pod that `targetRef` names.
    pub pod: Option<String>,
}

/// Where the endpoints of a slice listen for the service's port of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlicePort {
    /// Empty if it has none.
    pub name: String,
    /// The target port.
    pub port: u16,
    /// `protocol`.
    pub transport: Transport,
}

/// A workload that is not a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// `metadata`.
    pub metadata: Metadata,
    /// `None` for an entry with a host name.
    pub address: Option<IpAddr>,
    /// Empty for an entry with an address.
    pub hostname: String,
    /// Where it listens, by the name of the service's port.
    pub ports: BTreeMap<String, u16>,
    /// `spec.labels`.
    pub labels: BTreeMap<String, String>,
    /// Empty means the mesh's.
    pub network: String,
    /// Where it runs.
    pub locality: LocalityText,
    /// Its relative share of connections; 1 if not set.
    pub weight: Option<u32>,
    /// Empty means `default`.
    pub service_account: String,
}

/// Services by host name that are not Kubernetes Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// `metadata`.
    pub metadata: Metadata,
    /// One service each. A host may begin with a `*.`.
    pub hosts: Vec<String>,
    /// The addresses that clients use for any of the hosts.
    pub addresses: Vec<IpBlock>,
    /// `spec.ports`.
    pub ports: Vec<EntryPort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Inline endpoints; their metadata is the entry's.
    pub endpoints: Vec<WorkloadEntry>,
    /// Selects pods and workload entries as endpoints; empty selects none.
    pub selector: Selector,
    /// Identities that endpoints may present besides their own.
    pub subject_alt_names: Vec<Identity>,
    /// Whether `exportTo` excludes namespaces.
    pub restricted: bool,
}

/// A port of a service entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPort {
    /// Unique in the entry.
    pub name: String,
    /// The port that clients connect to.
    pub port: u16,
    /// The port of endpoints that name no other.
    pub target: u16,
    /// TCP, unless `protocol` is UDP.
    pub transport: Transport,
    /// In lower case: `http`, `tls`, …
    pub protocol: String,
}

/// How a service entry's endpoints are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The client has chosen the address itself.
    #[default]
    None,
    /// The endpoints have addresses.
    Static,
    /// The endpoints' host names are resolved, or the hosts themselves.
    Dns,
}

/// `region/zone/subzone`; the later parts are optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalityText {
    /// Empty if unknown.
    pub region: String,
    /// Empty if unknown.
    pub zone: String,
    /// Empty if unknown.
    pub subzone: String,
}

/// An AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// `metadata`.
    pub metadata: Metadata,
    /// Empty selects the whole namespace (in the root namespace: the mesh).
    pub selector: Selector,
    /// Waypoints and services that enforce the policy instead of ztunnel.
    pub target_refs: Vec<TargetRef>,
    /// What a match does.
    pub action: PolicyAction,
    /// Any of them matches; without rules the policy never matches.
    pub rules: Vec<PolicyRule>,
}

/// What a policy is attached to instead of workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetRef {
    /// The API group; empty for the core group.
    pub group: String,
    /// For example `Gateway`.
    pub kind: String,
    /// An object of the policy's namespace.
    pub name: String,
}

/// `spec.action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyAction {
    /// A match permits.
    #[default]
    Allow,
    /// A match denies.
    Deny,
    /// Not supported.
    Audit,
    /// Not supported.
    Custom,
}

/// A rule matches if one of its sources, one of its operations and all of its conditions match. An empty list
/// matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// Sources, OR-ed.
    pub from: Vec<Source>,
    /// Operations, OR-ed.
    pub to: Vec<Operation>,
    /// Conditions, AND-ed.
    pub when: Vec<When>,
}

/// `from[].source`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// `principals`.
    pub principals: Vec<String>,
    /// `notPrincipals`.
    pub not_principals: Vec<String>,
    /// `requestPrincipals`, an HTTP field.
    pub request_principals: Vec<String>,
    /// `notRequestPrincipals`, an HTTP field.
    pub not_request_principals: Vec<String>,
    /// `namespaces`.
    pub namespaces: Vec<String>,
    /// `notNamespaces`.
    pub not_namespaces: Vec<String>,
    /// `serviceAccounts`.
    pub service_accounts: Vec<String>,
    /// `notServiceAccounts`.
    pub not_service_accounts: Vec<String>,
    /// `ipBlocks`.
    pub ip_blocks: Vec<IpBlock>,
    /// `notIpBlocks`.
    pub not_ip_blocks: Vec<IpBlock>,
    /// `remoteIpBlocks`, an HTTP field.
    pub remote_ip_blocks: Vec<IpBlock>,
    /// `notRemoteIpBlocks`, an HTTP field.
    pub not_remote_ip_blocks: Vec<IpBlock>,
}

/// `to[].operation`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// `hosts`, an HTTP field.
    pub hosts: Vec<String>,
    /// `notHosts`, an HTTP field.
    pub not_hosts: Vec<String>,
    /// `ports`.
    pub ports: Vec<u16>,
    /// `notPorts`.
    pub not_ports: Vec<u16>,
    /// `methods`, an HTTP field.
    pub methods: Vec<String>,
    /// `notMethods`, an HTTP field.
    pub not_methods: Vec<String>,
    /// `paths`, an HTTP field.
    pub paths: Vec<String>,
    /// `notPaths`, an HTTP field.
    pub not_paths: Vec<String>,
}

/// `when[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// The attribute, for example `source.ip`.
    pub key: String,
    /// One of them must match; empty matches.
    pub values: Vec<String>,
    /// None of them may match.
    pub not_values: Vec<String>,
}

/// A PeerAuthentication: whether peers must authenticate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// `metadata`.
    pub metadata: Metadata,
    /// Empty selects the whole namespace (in the root namespace: the mesh).
    pub selector: Selector,
    /// `mtls.mode`.
    pub mode: MtlsMode,
    /// `portLevelMtls`, by workload port; only with a selector.
    pub port_modes: BTreeMap<u16, MtlsMode>,
    /// The annotation `ambit.dev/same-node-tls`: whether TLS is demanded on the same node too. `None` if not
    /// set.
    pub same_node_tls: Option<bool>,
}

/// `mtls.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Inherited from the next wider object.
    #[default]
    Unset,
    /// Plaintext only; read as `Permissive`, as in Istio's ambient mode.
    Disable,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Mutual TLS only.
    Strict,
}
