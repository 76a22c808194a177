//! Who owns an address: [`owner`], for a client of a namespace, and [`captured`], what the kernel captures so
//! that the daemon gets to decide.
//!
//! In this order:
//!
//! 1. Kubernetes' own objects: a Service its cluster addresses, a pod its own.
//! 2. A Service the addresses that it shares with others (external addresses, a load balancer's), there only
//!    its ports; what is left of a node's address belongs to the node.
//! 3. A ServiceEntry or WorkloadEntry that the client's namespace sees (`exportTo`): one of that namespace
//!    itself, else the oldest. A ServiceEntry claims its ports, a WorkloadEntry the whole address.
//!
//! So no entry takes what Kubernetes has given out, nor what the client's own namespace claims.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::mesh::Mesh;
use crate::model::{Claim, Exported, Service, Workload};

/// The owner of an address and port, as clients of one namespace see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A service, which has the port.
    Service(&'a Arc<Service>),
    /// A workload, whatever the port.
    Workload(&'a Arc<Workload>),
    /// A Kubernetes Service, which does not have the port.
    NoPort(&'a Arc<Service>),
    /// A node, which shares the address with this pod.
    Node(&'a Arc<Workload>),
}

/// The owner of the address and port for clients of this namespace; `None`: no owner that they see.
pub fn owner<'a>(mesh: &'a Mesh, client: &str, address: SocketAddr) -> Option<Owner<'a>> {
    let (ip, port) = (address.ip().to_canonical(), address.port());
    let of_kubernetes = || mesh.services_by_address(ip).filter(|service| service.origin.is_kubernetes());
    let whole = || of_kubernetes().filter(|service| !service.shares(ip));
    let serving = whole().filter(|service| service.port(port).is_some());
    if let Some(service) = own_or_first(client, serving) {
        return Some(Owner::Service(service));
    }
    if let Some(pod) = pod_at(mesh, ip) {
        return Some(Owner::Workload(pod));
    }
    if let Some(service) = whole().next() {
        return Some(Owner::NoPort(service));
    }
    let sharing = of_kubernetes().filter(|service| service.port(port).is_some());
    if let Some(service) = own_or_first(client, sharing) {
        return Some(Owner::Service(service));
    }
    match mesh.node_at(ip) {
        Some(pod) => Some(Owner::Node(pod)),
        None => Claims::at(mesh, client, ip, Some(port)).first(client),
    }
}

/// The workload that owns the address for clients of this namespace, whatever services are there.
pub fn workload_at<'a>(mesh: &'a Mesh, client: &str, ip: IpAddr) -> Option<&'a Arc<Workload>> {
    let ip = ip.to_canonical();
    let claims = || match Claims::at(mesh, client, ip, None).first(client) {
        Some(Owner::Workload(workload)) => Some(workload),
        _ => None,
    };
    pod_at(mesh, ip).or_else(claims)
}

/// Whether anything claims the address, for whatever client and port.
pub fn is_claimed(mesh: &Mesh, ip: IpAddr) -> bool {
    mesh.services_by_address(ip).next().is_some() || mesh.workloads_by_address(ip).next().is_some()
}

/// Whether the service is the owner of the address and port for the clients of every namespace.
pub fn owns_for_all(mesh: &Mesh, service: &Service, address: SocketAddr) -> bool {
    let (ip, port) = (address.ip().to_canonical(), address.port());
    let mut services = mesh.services_by_address(ip).filter(|other| other.key != service.key);
    let mut workloads = mesh.workloads_by_address(ip);
    match service.origin.claim() {
        None if !service.shares(ip) => !services
            .any(|other| other.origin.is_kubernetes() && !other.shares(ip) && other.port(port).is_some()),
        None => {
            !services.any(|other| {
                other.origin.is_kubernetes() && (!other.shares(ip) || other.port(port).is_some())
            }) && !workloads.any(|workload| workload.origin.is_kubernetes())
        }
        Some(claim) => {
            claim.exported == Exported::Everywhere
                && services.next().is_none()
                && workloads.next().is_none()
                && mesh.node_at(ip).is_none()
        }
    }
}

/// Which connections of enrolled clients to an address are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Captured {
    /// All of them.
    Whole,
    /// Those to these ports, from clients of these namespaces; perhaps none.
    Parts(BTreeSet<Part>),
}

/// Connections to an address that are captured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// From clients of this namespace; `None`: from all.
    pub namespace: Option<Arc<str>>,
    /// To this port; `None`: to every port.
    pub port: Option<u16>,
}

impl Captured {
    /// No connection.
    pub const NOTHING: Self = Self::Parts(BTreeSet::new());
}

/// Which connections of enrolled clients to the address are captured: those to enrolled workloads, to
/// services with an enrolled endpoint or with virtual addresses, and to what has a waypoint. Where several
/// entries claim the address, perhaps more than the owners': the daemon passes on what it has no plan for.
pub fn captured(mesh: &Mesh, ip: IpAddr) -> Captured {
    let ip = ip.to_canonical();
    let is_wanted = |service: &Service| {
        service.acting_waypoint().is_some()
            || service.virtual_addresses
            || mesh.endpoints(&service.key).any(|endpoint| endpoint.in_mesh())
    };
    let workload_is_wanted = |workload: &Workload| workload.in_mesh() || workload.acting_waypoint().is_some();
    let of_kubernetes = || mesh.services_by_address(ip).filter(|service| service.origin.is_kubernetes());
    let whole = || of_kubernetes().filter(|service| !service.shares(ip));
    let pods = || mesh.workloads_by_address(ip).filter(|workload| workload.origin.is_kubernetes());
    if whole().next().is_some() || pods().next().is_some() {
        let wanted = whole().any(|service| is_wanted(service)) || pods().any(|pod| workload_is_wanted(pod));
        return if wanted { Captured::Whole } else { Captured::NOTHING };
    }
    let mut parts = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for service in of_kubernetes() {
        taken.extend(service.ports.iter().map(|port| port.port));
        if is_wanted(service) {
            parts.extend(service.ports.iter().map(|port| Part { namespace: None, port: Some(port.port) }));
        }
    }
    if mesh.node_at(ip).is_some() {
        return Captured::Parts(parts);
    }
    for (service, claim) in entries(mesh.services_by_address(ip), |service| service.origin.claim()) {
        let ports = service.ports.iter().map(|port| port.port).filter(|port| !taken.contains(port));
        if is_wanted(service) {
            ports.for_each(|port| add(&mut parts, claim, Some(port)));
        }
    }
    for (workload, claim) in entries(mesh.workloads_by_address(ip), |workload| workload.origin.claim()) {
        if workload_is_wanted(workload) {
            if claim.exported == Exported::Everywhere {
                return Captured::Whole;
            }
            add(&mut parts, claim, None);
        }
    }
    Captured::Parts(parts)
}

fn add(parts: &mut BTreeSet<Part>, claim: &Claim, port: Option<u16>) {
    match &claim.exported {
        Exported::Everywhere => drop(parts.insert(Part { namespace: None, port })),
        Exported::To(namespaces) => {
            parts
                .extend(namespaces.iter().map(|namespace| Part { namespace: Some(namespace.clone()), port }));
        }
    }
}

/// Those that an entry names, each with its claim.
fn entries<'a, T: 'a>(
    all: impl Iterator<Item = &'a Arc<T>>,
    claim: impl Fn(&'a T) -> Option<&'a Claim>,
) -> impl Iterator<Item = (&'a Arc<T>, &'a Claim)> {
    all.filter_map(move |one| Some((one, claim(one)?)))
}

/// Of several, the one of the client's own namespace, then the first by key.
fn own_or_first<'a>(
    client: &str,
    services: impl Iterator<Item = &'a Arc<Service>>,
) -> Option<&'a Arc<Service>> {
    let mut first = None;
    for service in services {
        if *service.key.namespace == *client {
            return Some(service);
        }
        first = first.or(Some(service));
    }
    first
}

/// The pod that has the address as its own. Of several, an enrolled one: addresses of finished pods are given
/// to new ones while the old object lingers, and a wrong choice must fail rather than send plaintext.
fn pod_at(mesh: &Mesh, ip: IpAddr) -> Option<&Arc<Workload>> {
    let pods = || mesh.workloads_by_address(ip).filter(|workload| workload.origin.is_kubernetes());
    pods().find(|pod| pod.in_mesh()).or_else(|| pods().next())
}

/// The entries' claims to an address that the client's namespace sees, by the entries' namespace.
#[derive(Default)]
struct Claims<'a>(BTreeMap<&'a str, OfNamespace<'a>>);

/// A namespace's claims. Its age is its oldest claim's.
struct OfNamespace<'a> {
    created: i64,
    services: Vec<(i64, &'a Arc<Service>)>,
    workloads: Vec<&'a Arc<Workload>>,
}

impl<'a> Claims<'a> {
    /// The claims to a port; without one, those of workloads only.
    fn at(mesh: &'a Mesh, client: &str, ip: IpAddr, port: Option<u16>) -> Self {
        let mut claims = Self::default();
        let services = mesh.services_by_address(ip).filter(|s| port.is_some_and(|p| s.port(p).is_some()));
        for (service, claim) in entries(services, |service| service.origin.claim()) {
            if claim.exported.reaches(client) {
                let age = age(claim);
                claims.of(&service.key.namespace, age).services.push((age, service));
            }
        }
        for (workload, claim) in entries(mesh.workloads_by_address(ip), |w| w.origin.claim()) {
            if claim.exported.reaches(client) {
                claims.of(&workload.namespace, age(claim)).workloads.push(workload);
            }
        }
        claims
    }

    fn of(&mut self, namespace: &'a str, age: i64) -> &mut OfNamespace<'a> {
        let none = OfNamespace { created: age, services: Vec::new(), workloads: Vec::new() };
        let of = self.0.entry(namespace).or_insert(none);
        of.created = of.created.min(age);
        of
    }

    /// The client's namespace's own, else those of the namespace with the oldest: a service, else a workload
    /// (an enrolled one first, then by uid).
    fn first(self, client: &str) -> Option<Owner<'a>> {
        let Self(mut all) = self;
        let oldest = |all: BTreeMap<&'a str, OfNamespace<'a>>| all.into_values().min_by_key(|of| of.created);
        let of = all.remove(client).or_else(|| oldest(all))?;
        if let Some((_, service)) = of.services.iter().min_by_key(|(age, service)| (*age, &service.key)) {
            return Some(Owner::Service(service));
        }
        let enrolled = of.workloads.iter().find(|workload| workload.in_mesh());
        enrolled.or(of.workloads.first()).map(|workload| Owner::Workload(workload))
    }
}

/// Those of unknown age are last.
fn age(claim: &Claim) -> i64 {
    claim.created.unwrap_or(i64::MAX)
}
