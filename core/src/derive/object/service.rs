//! Kubernetes' [`Service`] and [`EndpointSlice`].

use std::net::IpAddr;

use super::key::{Kind, Metadata, ObjectKey, Selector};
use super::pod::{PortRef, Transport};
use crate::model::{Affinity, Health};

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
    /// `spec.trafficDistribution`, or else Istio's annotation.
    pub traffic_distribution: TrafficDistribution,
    /// `spec.sessionAffinity`.
    pub affinity: Affinity,
}

/// `spec.trafficDistribution` of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficDistribution {
    /// Not said: as the namespace says.
    #[default]
    Unset,
    /// No preference, whatever the namespace says.
    Any,
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
    pub(in crate::derive) fn key(&self) -> ObjectKey {
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
