//! Which endpoint of a service serves a connection: [`Choice`].
//!
//! The set of those that may is the same for every way to choose from it: [`Choice::pick`] throws dice,
//! [`Choice::sticky`] gives a client always the same one, [`table`] lists the shares for the kernel.

mod affinity;
mod table;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::health::Ejected;
use crate::mesh::Mesh;
use crate::model::{Affinity, Health, LoadBalancingMode, LocalityScope, Service, Workload, WorkloadUid};

pub use affinity::sticky;
pub use table::table;

/// Whom not to choose.
#[derive(Clone, Copy, Debug)]
pub struct Avoid<'a> {
    /// Those that failed for many: not chosen while there is another.
    pub ejected: &'a Ejected,
    /// Those that failed for this very connection: never chosen.
    pub tried: &'a [WorkloadUid],
}

impl Avoid<'static> {
    /// Nobody.
    pub const NONE: Self = Self { ejected: &Ejected::NONE, tried: &[] };
}

/// A choice that is to be made: for whom, of which service, without whom.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    pub mesh: &'a Mesh,
    pub client: &'a Workload,
    pub service: &'a Service,
    /// The service's address and port that the client asked for.
    pub asked: SocketAddr,
    pub avoid: Avoid<'a>,
}

/// An endpoint and where it listens for the service's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<'a> {
    pub workload: &'a Arc<Workload>,
    pub address: SocketAddr,
}

/// What those that may serve have in common.
#[derive(Clone, Copy, Debug)]
struct Preference {
    /// Not those that are ending.
    healthy: bool,
    without_ejected: bool,
    /// How many scopes they share with the client; `None`: that does not matter.
    rank: Option<usize>,
    /// Not on a node where an endpoint failed for this connection: what ails the node may ail its others.
    other_nodes: bool,
}

impl<'a> Choice<'a> {
    /// The endpoint for a connection: the client's own where the service has affinity, else one by dice.
    /// `dice` is a uniformly random number: the same number, the same answer.
    pub fn make(&self, dice: u64) -> Option<Endpoint<'a>> {
        match self.service.load_balancing.affinity {
            Affinity::None => self.pick(dice),
            Affinity::ClientIp => self.sticky(),
        }
    }

    /// One of those that may serve, in proportion to their capacities. Allocates nothing.
    pub fn pick(&self, dice: u64) -> Option<Endpoint<'a>> {
        let preference = self.preference()?;
        let total: u64 = self.preferred(preference).map(|endpoint| u64::from(endpoint.capacity)).sum();
        // Scaling by multiplication keeps every share exact to 2⁻⁶⁴, where a remainder would favour the first
        // ones.
        let mut left =
            u64::try_from((u128::from(dice) * u128::from(total)) >> 64).expect("smaller than a u64 total");
        for workload in self.preferred(preference) {
            let capacity = u64::from(workload.capacity);
            if left < capacity {
                return self.endpoint(workload);
            }
            left -= capacity;
        }
        None
    }

    /// The endpoint with this address, if it may serve: for a choice that was made already, from news that
    /// may be a moment old. Its rank may have been overtaken, its readiness not.
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

    /// Those that may serve now, ordered by uid.
    pub fn endpoints(&self) -> impl Iterator<Item = &'a Arc<Workload>> {
        self.preference().into_iter().flat_map(|preference| self.preferred(preference))
    }

    /// Those that could serve if there were no others: reachable, ready (if only until they end), with
    /// capacity, listening for the port, and not tried yet.
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

    /// The strictest preference that somebody meets; none where nobody may serve. One that is ending serves
    /// only where the service's rule leaves nobody healthy, and an ejected one only where it leaves no
    /// other: better a likely failure than a certain one.
    fn preference(&self) -> Option<Preference> {
        let healths: &[bool] =
            if self.service.load_balancing.allow_unhealthy { &[false] } else { &[true, false] };
        let any_ejected = self.avoid.ejected.concerns(&self.service.key);
        let ejections: &[bool] = if any_ejected { &[true, false] } else { &[false] };
        let anyone = Preference { healthy: false, without_ejected: false, rank: None, other_nodes: false };
        let order = healths.iter().flat_map(|healthy| {
            let with = |without_ejected: &bool| Preference {
                healthy: *healthy,
                without_ejected: *without_ejected,
                ..anyone
            };
            ejections.iter().map(with)
        });
        order.into_iter().find_map(|anyone| self.preference_with(anyone))
    }

    fn preference_with(&self, anyone: Preference) -> Option<Preference> {
        let rule = &self.service.load_balancing;
        let rank = match rule.mode {
            LoadBalancingMode::Unspecified | LoadBalancingMode::Passthrough => None,
            LoadBalancingMode::Strict => Some(rule.routing_preference.len()),
            LoadBalancingMode::Failover => Some(self.preferred(anyone).map(|e| self.rank(e)).max()?),
        };
        let ranked = Preference { rank, ..anyone };
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

    /// How many of the scopes, from the most significant on, the endpoint shares with the client.
    fn rank(&self, endpoint: &Workload) -> usize {
        let scopes = self.service.load_balancing.routing_preference.iter();
        scopes.take_while(|scope| shares(**scope, self.client, endpoint)).count()
    }

    fn endpoint(&self, workload: &'a Arc<Workload>) -> Option<Endpoint<'a>> {
        // What is reached by name has no address yet.
        let unresolved = || workload.hostname.as_ref().map(|_| unspecified(self.asked));
        let address = address_of_family(workload, self.asked).or_else(unresolved)?;
        let port = workload.target_port(self.service, self.asked.port())?;
        Some(Endpoint { workload, address: SocketAddr::new(address, port) })
    }
}

fn shares(scope: LocalityScope, a: &Workload, b: &Workload) -> bool {
    match scope {
        LocalityScope::Region => a.locality.region == b.locality.region,
        LocalityScope::Zone => a.locality.zone == b.locality.zone,
        LocalityScope::Subzone => a.locality.subzone == b.locality.subzone,
        LocalityScope::Node => a.node == b.node,
        LocalityScope::Cluster => a.cluster == b.cluster,
        LocalityScope::Network => a.network == b.network,
    }
}

/// Stands for an address that is still to be resolved.
fn unspecified(family: SocketAddr) -> IpAddr {
    if family.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// An address of the family the client asked for, or the first: a tunnel carries IPv4 over IPv6 and back.
fn address_of_family(endpoint: &Workload, asked: SocketAddr) -> Option<IpAddr> {
    let same = endpoint.addresses.iter().find(|address| address.is_ipv4() == asked.is_ipv4());
    same.or_else(|| endpoint.addresses.first()).copied()
}
