//! Workloads: pods, and the processes and machines of WorkloadEntries ([`Workload`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::claim::Origin;
use super::identity::{Identity, TrustDomain};
use super::key::{PolicyKey, ServiceKey, WorkloadUid};
use super::locality::Locality;
use super::service::Service;
use super::waypoint::Waypoint;

/// A workload, enrolled (`protocol` is HBONE) or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name on the wire.
    pub uid: WorkloadUid,
    /// The name of the Kubernetes object.
    pub name: Arc<str>,
    /// The namespace of the Kubernetes object; part of its identity.
    pub namespace: Arc<str>,
    /// Part of its identity; empty: it has none, and is never in the mesh.
    pub service_account: Arc<str>,
    /// Part of its identity.
    pub trust_domain: TrustDomain,
    /// The node it runs on; empty when unknown.
    pub node: Arc<str>,
    /// The Kubernetes cluster it belongs to.
    pub cluster: Arc<str>,
    /// Workloads of one network reach each other's addresses.
    pub network: Arc<str>,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// Canonical form (a v4-mapped address is written as IPv4).
    pub addresses: Vec<IpAddr>,
    /// How its peers must reach it.
    pub protocol: TunnelProtocol,
    /// Its readiness.
    pub health: Health,
    /// The services it is an endpoint of, and where it listens for each of their ports.
    pub services: BTreeMap<ServiceKey, Vec<PortMapping>>,
    /// The policies of scope `WorkloadSelector` that apply to it.
    pub policies: Vec<PolicyKey>,
    /// The waypoint that it is bound to, if any, whether or not the binding acts: see
    /// [`Self::acting_waypoint`].
    pub waypoint: Option<Waypoint>,
    /// Whether it refuses connections that came past the waypoint of the service that they are for.
    pub require_waypoint: bool,
    /// Where it runs.
    pub locality: Locality,
    /// Its relative share of a service's connections.
    pub capacity: u32,
    /// What manages it, for metrics.
    pub kind: WorkloadKind,
    /// The name of what manages it (a Deployment's, …), for metrics.
    pub workload_name: Arc<str>,
    /// Istio's canonical service name, for metrics.
    pub canonical_name: Arc<str>,
    /// Istio's canonical service revision, for metrics.
    pub canonical_revision: Arc<str>,
    /// The ports of the pod's probes; its own node may reach them under any policy.
    pub probe_ports: Vec<u16>,
    /// Ports that are excluded from capture.
    pub excluded_ports: ExcludedPorts,
    /// The host name of an endpoint without `addresses`: ztunnel resolves it when it connects.
    pub hostname: Option<Arc<str>>,
    /// Whether its connections may take the direct path.
    pub direct: bool,
    /// Whether it demands TLS also from peers on its own node.
    pub same_node_tls: bool,
    /// Trust domains that are equivalent to its own: peers of these are accepted, and its certificate may
    /// name one.
    pub trust_domain_aliases: Arc<[TrustDomain]>,
    /// By what right it has its addresses.
    pub origin: Origin,
}

/// Ports of a workload that are excluded from capture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExcludedPorts {
    /// Plaintext to these ports reaches the application under any policy. Tunnels to them need
    /// authorization.
    pub inbound: BTreeSet<u16>,
    /// Its connections to these ports are not captured.
    pub outbound: BTreeSet<u16>,
}

impl Workload {
    /// Whether it has an identity. Nobody vouches for a pod without a service account.
    pub fn has_identity(&self) -> bool {
        !self.service_account.is_empty()
    }

    /// The identity its certificate carries. Of a workload that has none ([`Self::has_identity`]) it is a
    /// name that no certificate can carry: it cannot be parsed.
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// Its identity, and the same one in each of its trust domain's aliases.
    pub fn identities(&self) -> impl Iterator<Item = Identity> {
        let domains = std::iter::once(&self.trust_domain).chain(self.trust_domain_aliases.iter());
        domains.map(|domain| Identity { trust_domain: domain.clone(), ..self.identity() })
    }

    /// The waypoint that connections to the workload's own addresses must pass.
    pub fn acting_waypoint(&self) -> Option<&Waypoint> {
        self.waypoint.as_ref().filter(|waypoint| waypoint.acts())
    }

    /// Whether the address is one of its own (a v4-mapped one counts as IPv4).
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.has_own_address() && self.addresses.contains(&address.to_canonical())
    }

    /// Whether its addresses are its own, not its node's.
    pub fn has_own_address(&self) -> bool {
        self.network_mode == NetworkMode::Standard
    }

    /// Where it listens for a port of a service that it is an endpoint of.
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
    /// The service's port.
    pub service_port: u16,
    /// The workload's port; 0 where the service's [`ServicePort`](super::ServicePort) has it.
    pub target_port: u16,
}

/// How peers reach a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// By plain TCP.
    #[default]
    None,
    /// Through HBONE tunnels.
    Hbone,
}

/// Whether a workload has addresses of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// It has a network namespace of its own.
    #[default]
    Standard,
    /// It shares its node's addresses: it is never captured, and never found by address.
    HostNetwork,
}

/// The readiness of a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready.
    Unhealthy,
    /// Ready but terminating: chosen only where no endpoint is healthy.
    Draining,
}

/// What manages a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// A Deployment (through a ReplicaSet).
    Deployment,
    /// A CronJob (through a Job).
    CronJob,
    /// Nothing that is known, or it is no pod.
    #[default]
    Pod,
    /// A Job.
    Job,
}
