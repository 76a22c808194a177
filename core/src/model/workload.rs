//! Workloads: the pods, processes and machines that speak and listen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Identity, Locality, PolicyKey, Service, ServiceKey, TrustDomain};

/// Names a workload: `<cluster>//Pod/<namespace>/<name>` for pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub Arc<str>);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One workload, enrolled (`protocol` is HBONE) or merely known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub uid: WorkloadUid,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
    pub trust_domain: TrustDomain,
    /// The node it runs on; empty when unknown.
    pub node: Arc<str>,
    pub cluster: Arc<str>,
    pub network: Arc<str>,
    pub network_mode: NetworkMode,
    /// Canonical form (a v4-mapped address is written as IPv4).
    pub addresses: Vec<IpAddr>,
    /// How its peers must reach it.
    pub protocol: TunnelProtocol,
    pub health: Health,
    /// Which services it stands behind, and where it listens for each of their ports.
    pub services: BTreeMap<ServiceKey, Vec<PortMapping>>,
    /// Policies of scope `WorkloadSelector` that concern it.
    pub policies: Vec<PolicyKey>,
    pub waypoint: Option<Waypoint>,
    pub locality: Locality,
    /// Relative share among a service's endpoints.
    pub capacity: u32,
    pub kind: WorkloadKind,
    /// The name of what manages it (a Deployment's, …), for metrics.
    pub workload_name: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    /// Ports that the pod declares as probes; its own node may reach them under any policy.
    pub probe_ports: Vec<u16>,
    /// Ports that the pod keeps out of capture.
    pub excluded_ports: ExcludedPorts,
    /// An endpoint that is reached by name: ztunnel resolves it when it connects, and `addresses` is empty.
    pub hostname: Option<Arc<str>>,
    /// Whether its connections may take the direct path.
    pub direct: bool,
    /// Whether it demands TLS also from peers on its own node.
    pub same_node_tls: bool,
    /// Other trust domains that are as good as its own: peers of these are let in, and its certificate may
    /// name one.
    pub trust_domain_aliases: Arc<[TrustDomain]>,
}

/// Ports that a workload keeps out of capture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExcludedPorts {
    /// Plaintext that arrives at these reaches the application under any policy. Tunnels to them stay under
    /// policy.
    pub inbound: BTreeSet<u16>,
    /// Connections that it makes to these, as it dials them, are left alone.
    pub outbound: BTreeSet<u16>,
}

impl Workload {
    /// The identity its certificate carries.
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// Its identity, and the same one in each of the trust domains that are as good as its own.
    pub fn identities(&self) -> impl Iterator<Item = Identity> {
        let domains = std::iter::once(&self.trust_domain).chain(self.trust_domain_aliases.iter());
        domains.map(|domain| Identity { trust_domain: domain.clone(), ..self.identity() })
    }

    /// Whether the address is one of its own (a v4-mapped one counts as IPv4).
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.has_own_address() && self.addresses.contains(&address.to_canonical())
    }

    /// Whether its addresses are its alone, not its node's.
    pub fn has_own_address(&self) -> bool {
        self.network_mode == NetworkMode::Standard
    }

    /// Where it listens for a port of a service that it stands behind.
    pub fn target_port(&self, service: &Service, port: u16) -> Option<u16> {
        let own = self.services.get(&service.key)?.iter().find(|mapping| mapping.service_port == port)?;
        let declared = || service.port(port).map(|declared| declared.target_port);
        Some(own.target_port).filter(|port| *port != 0).or_else(declared).filter(|port| *port != 0)
    }

    /// Whether it is enrolled: peers reach it by HBONE only.
    pub fn in_mesh(&self) -> bool {
        self.protocol == TunnelProtocol::Hbone && self.has_own_address()
    }
}

/// Where a workload listens for a service's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortMapping {
    pub service_port: u16,
    pub target_port: u16,
}

/// How peers reach a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// Plainly.
    #[default]
    None,
    /// Through HBONE.
    Hbone,
}

/// Whether a workload has an address of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    #[default]
    Standard,
    /// Shares its node's address: never captured, never matched by address.
    HostNetwork,
}

/// Readiness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    #[default]
    Healthy,
    Unhealthy,
    /// It is ending and still serves: chosen only where nobody is healthy.
    Draining,
}

/// What manages a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    Deployment,
    CronJob,
    #[default]
    Pod,
    Job,
}

/// A proxy that stands before a service or workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Waypoint {
    pub destination: WaypointDestination,
    /// Its HBONE port, normally 15008.
    pub hbone_port: u16,
}

/// How a waypoint is named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WaypointDestination {
    Hostname(ServiceKey),
    Address(IpAddr),
}
