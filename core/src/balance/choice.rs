//! The endpoints that are eligible for a connection, and the choice of one: [`Choice`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::affinity::score;
use crate::mesh::Mesh;
use crate::model::{Affinity, Health, LoadBalancingMode, LocalityScope, Service, Workload, WorkloadUid};
use crate::outlier::Ejected;

/// Endpoints to avoid.
#[derive(Clone, Copy, Debug)]
pub struct Avoid<'a> {
    /// Ejected by outlier detection: chosen only where there is no other.
    pub ejected: &'a Ejected,
    /// Already tried for this connection: never chosen.
    pub tried: &'a [WorkloadUid],
}

impl Avoid<'static> {
    /// No endpoint.
    pub const NONE: Self = Self { ejected: &Ejected::NONE, tried: &[] };
}

/// A choice of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The state that is decided on.
    pub mesh: &'a Mesh,
    /// The client's workload.
    pub client: &'a Workload,
    /// The service whose endpoint is chosen.
    pub service: &'a Service,
    /// The original destination: an address and port of the service.
    pub asked: SocketAddr,
    /// The endpoints to avoid.
    pub avoid: Avoid<'a>,
}

/// An endpoint and where it listens for the service's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<'a> {
    /// The endpoint's workload.
    pub workload: &'a Arc<Workload>,
    /// The endpoint's address and target port.
    pub address: SocketAddr,
}

/// What the eligible endpoints have in common.
#[derive(Clone, Copy, Debug)]
struct Preference {
    /// Without draining ones.
    healthy: bool,
    /// Without ejected ones.
    without_ejected: bool,
    /// The number of scopes they share with the client; `None`: any.
    rank: Option<usize>,
    /// Without those on a node where an endpoint was tried for this connection: the node may be at fault.
    other_nodes: bool,
}

impl<'a> Choice<'a> {
    /// The endpoint for a connection: [`Self::sticky`] where the service has affinity, else [`Self::pick`].
    /// `random` is a uniformly random number; equal numbers give equal endpoints.
    pub fn make(&self, random: u64) -> Option<Endpoint<'a>> {
        match self.service.load_balancing.affinity {
            Affinity::None => self.pick(random),
            Affinity::ClientIp => self.sticky(),
        }
    }

    /// The eligible endpoint with the lowest score for the client. Endpoints have clients in proportion to
    /// their capacities.
    pub fn sticky(&self) -> Option<Endpoint<'a>> {
        let scored = self.endpoints().map(|endpoint| (score(&self.client.uid, endpoint), endpoint));
        // Of equal scores, the first by uid.
        let (_, least) = scored.reduce(|best, next| if next.0 < best.0 { next } else { best })?;
        self.endpoint(least)
    }

    /// One of the eligible endpoints, in proportion to their capacities. Allocates nothing.
    pub fn pick(&self, random: u64) -> Option<Endpoint<'a>> {
        let preference = self.preference()?;
        let total: u64 = self.preferred(preference).map(|endpoint| u64::from(endpoint.capacity)).sum();
        // Scaling by multiplication keeps every share exact to 2⁻⁶⁴; a remainder would favour the first ones.
        let mut left =
            u64::try_from((u128::from(random) * u128::from(total)) >> 64).expect("smaller than a u64 total");
        for workload in self.preferred(preference) {
            let capacity = u64::from(workload.capacity);
            if left < capacity {
                return self.endpoint(workload);
            }
            left -= capacity;
        }
        None
    }

    /// The endpoint that the kernel has chosen, if it is eligible. The kernel's table may be older than the
    /// mesh: the endpoint may have a lower rank than others now, but it must be ready.
    pub fn accept(&self, chosen: SocketAddr) -> Option<Endpoint<'a>> {
        let chosen = SocketAddr::new(chosen.ip().to_canonical(), chosen.port());
        let rule = &self.service.load_balancing;
        let workload = self.candidates().find(|workload| {
            workload.addresses.contains(&chosen.ip())
                && workload.target_port(self.service, self.asked.port()) == Some(chosen.port())
        })?;
        let within =
            rule.mode != LoadBalancingMode::Strict || self.rank(workload) == rule.routing_preference.len();
        let passed_over = || {
            let doubtful = workload.health != Health::Healthy || self.is_ejected(workload);
            doubtful && self.preference().is_none_or(|preference| !self.is_sound(workload, preference))
        };
        (within && !passed_over()).then_some(Endpoint { workload, address: chosen })
    }

    /// The eligible endpoints, ordered by uid.
    pub fn endpoints(&self) -> impl Iterator<Item = &'a Arc<Workload>> {
        self.preference().into_iter().flat_map(|preference| self.preferred(preference))
    }

    /// The endpoints that are reachable, ready or draining, with capacity, listening for the port, and not
    /// tried.
    fn candidates(&self) -> impl Iterator<Item = &'a Arc<Workload>> {
        let Self { client, service, asked, avoid, .. } = *self;
        let unready = service.load_balancing.allow_unhealthy;
        self.mesh.endpoints(&service.key).filter(move |endpoint| {
            endpoint.capacity > 0
                && (unready || endpoint.health != Health::Unhealthy)
                && endpoint.network == client.network
                && (!endpoint.addresses.is_empty() || endpoint.hostname.is_some())
                && endpoint.target_port(service, asked.port()).is_some()
                && !avoid.tried.contains(&endpoint.uid)
        })
    }

    fn preferred(&self, preference: Preference) -> impl Iterator<Item = &'a Arc<Workload>> {
        let choice = *self;
        self.candidates().filter(move |endpoint| choice.suits(endpoint, preference))
    }

    fn suits(&self, endpoint: &Workload, preference: Preference) -> bool {
        preference.rank.is_none_or(|rank| self.rank(endpoint) == rank)
            && self.is_sound(endpoint, preference)
            && !(preference.other_nodes && self.failed_on(&endpoint.node))
    }

    fn is_sound(&self, endpoint: &Workload, preference: Preference) -> bool {
        (!preference.healthy || endpoint.health == Health::Healthy)
            && (!preference.without_ejected || !self.is_ejected(endpoint))
    }

    /// The strictest preference that an endpoint meets, if any does. Draining endpoints are eligible only
    /// where no healthy one is, and ejected ones only where no other is: a likely failure is better than
    /// a certain one.
    fn preference(&self) -> Option<Preference> {
        let healths: &[bool] =
            if self.service.load_balancing.allow_unhealthy { &[false] } else { &[true, false] };
        let any_ejected = self.avoid.ejected.affects(&self.service.key);
        let ejections: &[bool] = if any_ejected { &[true, false] } else { &[false] };
        let any = Preference { healthy: false, without_ejected: false, rank: None, other_nodes: false };
        let order = healths.iter().flat_map(|healthy| {
            let with = |without_ejected: &bool| Preference {
                healthy: *healthy,
                without_ejected: *without_ejected,
                ..any
            };
            ejections.iter().map(with)
        });
        order.into_iter().find_map(|any| self.preference_with(any))
    }

    fn preference_with(&self, any: Preference) -> Option<Preference> {
        let rule = &self.service.load_balancing;
        let rank = match rule.mode {
            LoadBalancingMode::Unspecified | LoadBalancingMode::Passthrough => None,
            LoadBalancingMode::Strict => Some(rule.routing_preference.len()),
            LoadBalancingMode::Failover => Some(self.preferred(any).map(|e| self.rank(e)).max()?),
        };
        let ranked = Preference { rank, ..any };
        let elsewhere = Preference { other_nodes: true, ..ranked };
        if !self.avoid.tried.is_empty() && self.preferred(elsewhere).next().is_some() {
            return Some(elsewhere);
        }
        self.preferred(ranked).next().map(|_| ranked)
    }

    fn is_ejected(&self, endpoint: &Workload) -> bool {
        self.avoid.ejected.contains(&self.service.key, self.asked.port(), &endpoint.uid)
    }

    fn failed_on(&self, node: &str) -> bool {
        let tried = self.avoid.tried.iter().filter_map(|uid| self.mesh.workload(uid));
        !node.is_empty() && tried.into_iter().any(|failed| &*failed.node == node)
    }

    /// The number of leading scopes that the endpoint shares with the client.
    fn rank(&self, endpoint: &Workload) -> usize {
        let scopes = self.service.load_balancing.routing_preference.iter();
        scopes.take_while(|scope| shares(**scope, self.client, endpoint)).count()
    }

    /// The endpoint, with an address of the family that the client asked for.
    pub(super) fn endpoint(&self, workload: &'a Arc<Workload>) -> Option<Endpoint<'a>> {
        // A host name has not been resolved yet.
        let unresolved = || workload.hostname.as_ref().map(|_| unspecified(self.asked));
        let address = address_of_family(workload, self.asked).or_else(unresolved)?;
        let port = workload.target_port(self.service, self.asked.port())?;
        Some(Endpoint { workload, address: SocketAddr::new(address, port) })
    }
}

/// The address of [`Choice::sticky`]: the endpoint of a client of a service with affinity.
pub fn sticky(
    mesh: &Mesh,
    client: &Workload,
    service: &Service,
    asked: SocketAddr,
    ejected: &Ejected,
) -> Option<SocketAddr> {
    let choice = Choice { mesh, client, service, asked, avoid: Avoid { ejected, tried: &[] } };
    choice.sticky().map(|endpoint| endpoint.address)
}

/// Whether two workloads share the scope.
pub(super) fn shares(scope: LocalityScope, a: &Workload, b: &Workload) -> bool {
    match scope {
        LocalityScope::Region => a.locality.region == b.locality.region,
        LocalityScope::Zone => a.locality.zone == b.locality.zone,
        LocalityScope::Subzone => a.locality.subzone == b.locality.subzone,
        LocalityScope::Node => a.node == b.node,
        LocalityScope::Cluster => a.cluster == b.cluster,
        LocalityScope::Network => a.network == b.network,
    }
}

/// In place of an address that is still to be resolved.
fn unspecified(family: SocketAddr) -> IpAddr {
    if family.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// The first address of the original destination's family, or else the first: tunnels carry either family
/// over either.
fn address_of_family(endpoint: &Workload, asked: SocketAddr) -> Option<IpAddr> {
    let same = endpoint.addresses.iter().find(|address| address.is_ipv4() == asked.is_ipv4());
    same.or_else(|| endpoint.addresses.first()).copied()
}
