//! Services: names and addresses that stand for several workloads.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Identity, Waypoint};

/// Names a service: `<namespace>/<hostname>`, its resource name on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: Arc<str>,
    /// Fully qualified, for example `cart.shop.svc.cluster.local`.
    pub hostname: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A service. Which workloads stand behind it is written on the workloads (`Workload::services`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub key: ServiceKey,
    /// Its short name, for metrics.
    pub name: Arc<str>,
    /// Cluster, external and load-balancer addresses. Empty for headless services.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    /// Identities that may answer for the service besides its workloads' own.
    pub subject_alt_names: Vec<Identity>,
    pub waypoint: Option<Waypoint>,
    pub load_balancing: LoadBalancing,
    /// Its addresses mean something to the mesh only (a ServiceEntry's): nobody else routes them, so the
    /// mesh carries connections to them whoever the endpoints are.
    pub virtual_addresses: bool,
}

impl Service {
    /// The declared port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }
}

/// A port of a service. `target_port` 0: each workload says its own (a named target port).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    pub port: u16,
    pub target_port: u16,
    pub app_protocol: AppProtocol,
}

/// What the application speaks on a port, as declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    #[default]
    Unknown,
    Http11,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

/// How endpoints are preferred.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    /// Most significant first: an endpoint's rank is how many it shares with the client, from the start.
    pub routing_preference: Vec<LocalityScope>,
    pub mode: LoadBalancingMode,
    /// Also endpoints that are not ready (`publishNotReadyAddresses`).
    pub allow_unhealthy: bool,
    pub affinity: Affinity,
}

/// Whether a client's connections stay with one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Affinity {
    /// Each connection is chosen for by itself.
    #[default]
    None,
    /// They stay, as long as the endpoint may serve (`sessionAffinity: ClientIP`).
    ClientIp,
}

/// What a routing preference compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalityScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// Whether endpoints of lower preference may serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LoadBalancingMode {
    /// No preference.
    #[default]
    Unspecified,
    /// Only endpoints that share every scope.
    Strict,
    /// The best rank that has a healthy endpoint.
    Failover,
    /// Go to the address the client asked for.
    Passthrough,
}

/// Where a workload runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}
