//! Services: host names and addresses with workloads as endpoints ([`Service`]).

use std::net::IpAddr;
use std::sync::Arc;

use super::claim::Origin;
use super::identity::Identity;
use super::key::ServiceKey;
use super::locality::LocalityScope;
use super::waypoint::Waypoint;

/// A service. Its endpoints are the workloads that name it in `Workload::services`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name on the wire.
    pub key: ServiceKey,
    /// The name of the Kubernetes object, for metrics.
    pub name: Arc<str>,
    /// Cluster, external and load-balancer addresses. Empty for headless services.
    pub addresses: Vec<IpAddr>,
    /// The declared TCP ports.
    pub ports: Vec<ServicePort>,
    /// Identities that endpoints may present besides their own.
    pub subject_alt_names: Vec<Identity>,
    /// The waypoint that it is bound to, if any, whether or not the binding acts: see
    /// [`Self::acting_waypoint`].
    pub waypoint: Option<Waypoint>,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Its addresses are virtual (a ServiceEntry's): nothing outside the mesh routes them, so connections to
    /// them are captured whether or not an endpoint is enrolled.
    pub virtual_addresses: bool,
    /// Those of `addresses` that it shares with others (external addresses, a load balancer's): only its
    /// ports there are its own.
    pub shared_addresses: Vec<IpAddr>,
    /// By what right it has its addresses.
    pub origin: Origin,
}

impl Service {
    /// Whether the address is one of those that it shares (a v4-mapped one counts as IPv4).
    pub fn shares(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.shared_addresses.iter().any(|shared| shared.to_canonical() == address)
    }

    /// The waypoint that connections to the service must pass.
    pub fn acting_waypoint(&self) -> Option<&Waypoint> {
        self.waypoint.as_ref().filter(|waypoint| waypoint.acts())
    }

    /// The declared port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.port == number)
    }
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The port that clients connect to.
    pub port: u16,
    /// The port that endpoints listen on; 0 where it differs by workload (a named target port).
    pub target_port: u16,
    /// From `appProtocol` or the port's name.
    pub app_protocol: AppProtocol,
}

/// The declared protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Not declared.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2 without TLS.
    Http2,
    /// gRPC.
    Grpc,
    /// Plain TCP.
    Tcp,
    /// TLS of the application's own.
    Tls,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    /// Most significant first. An endpoint's rank is the number of leading scopes it shares with the client.
    pub routing_preference: Vec<LocalityScope>,
    /// What the ranks mean.
    pub mode: LoadBalancingMode,
    /// Endpoints that are not ready serve too (`publishNotReadyAddresses`).
    pub allow_unhealthy: bool,
    /// `sessionAffinity`.
    pub affinity: Affinity,
}

/// Whether a client's connections stay with one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Affinity {
    /// An endpoint is chosen for each connection.
    #[default]
    None,
    /// They stay as long as the endpoint may serve (`sessionAffinity: ClientIP`).
    ClientIp,
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
    /// No choice: the connection goes to its original destination.
    Passthrough,
}
