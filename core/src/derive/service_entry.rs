//! ServiceEntry → services by host name, and their inline endpoints.
//!
//! A host belongs to the Kubernetes Service of that name, whatever its namespace, or else, for each
//! namespace, to its oldest entry that claims it. An entry's other hosts are left out, and its conditions say
//! so. Whose its addresses are is decided for each client: [`crate::ownership`].
//!
//! Entry points: [`owner`] of a host and [`Claims`] of an entry.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::condition::Condition;
use super::contested;
use super::context::{Context, is_peer_address};
use super::object::{
    EntryPort, Kind, ObjectKey, Resolution, Service, ServiceEntry, Transport, WorkloadEntry,
};
use super::service;
use super::settings::Settings;
use super::store::Store;
use super::waypoint;
use crate::mesh::Mesh;
use crate::model::{
    self, AppProtocol, Claim, IpBlock, LoadBalancing, LoadBalancingMode, Origin, PortMapping, ServiceKey,
    Workload, WorkloadUid,
};

/// The object that a host name belongs to.
pub(super) enum Owner<'a> {
    Service(&'a Service),
    Entry(&'a ServiceEntry),
}

impl Owner<'_> {
    /// The service of the host name.
    pub(super) fn service(
        &self,
        key: &ServiceKey,
        store: &Store,
        settings: &Settings,
    ) -> Option<model::Service> {
        match self {
            Self::Service(object) if *object.metadata.namespace == *key.namespace => {
                let contents = store.contents(&key.namespace);
                let namespace = contents.and_then(|contents| contents.namespace.as_ref());
                let waypoint = waypoint::of_service(store, settings, object);
                service::derive(object, namespace, waypoint, settings)
            }
            Self::Service(_) => None,
            Self::Entry(entry) => {
                let waypoint = waypoint::of_entry(store, settings, entry);
                Some(model::Service { waypoint, ..of_host(entry, key) })
            }
        }
    }
}

/// The object that the host name belongs to in a namespace, if any.
pub(super) fn owner<'a>(store: &'a Store, settings: &Settings, key: &ServiceKey) -> Option<Owner<'a>> {
    if let Some(service) = service_named(store, settings, &key.hostname) {
        return Some(Owner::Service(service));
    }
    let contents = store.contents(&key.namespace)?;
    let claiming =
        contents.service_entries.values().filter(|entry| entry.hosts.iter().any(|h| **h == *key.hostname));
    claiming.min_by_key(|entry| age(entry)).map(Owner::Entry)
}

/// The Service with this host name: `<name>.<namespace>.svc.<domain>`.
fn service_named<'a>(store: &'a Store, settings: &Settings, host: &str) -> Option<&'a Service> {
    let name = host.strip_suffix(&*settings.domain)?.strip_suffix(".svc.")?;
    let (name, namespace) = name.rsplit_once('.')?;
    let service = store.contents(namespace)?.services.get(name)?;
    (!service.external_name).then_some(service)
}

/// Oldest first; those of unknown age last, by name.
fn age(entry: &ServiceEntry) -> (i64, &str) {
    (entry.metadata.created.unwrap_or(i64::MAX), &entry.metadata.name)
}

fn of_host(entry: &ServiceEntry, key: &ServiceKey) -> model::Service {
    let passthrough = entry.resolution == Resolution::None;
    let mode = if passthrough { LoadBalancingMode::Passthrough } else { LoadBalancingMode::default() };
    let mut addresses: Vec<IpAddr> = entry.addresses.iter().filter_map(single).collect();
    addresses.sort_unstable();
    addresses.dedup();
    model::Service {
        key: key.clone(),
        name: entry.metadata.name.as_str().into(),
        virtual_addresses: !passthrough && !addresses.is_empty(),
        addresses,
        ports: tcp_ports(entry)
            .map(|port| model::ServicePort {
                port: port.port,
                target_port: port.target.unwrap_or(port.port),
                app_protocol: app_protocol(&port.protocol),
            })
            .collect(),
        subject_alt_names: entry.subject_alt_names.clone(),
        waypoint: None,
        load_balancing: LoadBalancing { mode, ..LoadBalancing::default() },
        shared_addresses: Vec::new(),
        origin: origin(entry),
    }
}

fn origin(entry: &ServiceEntry) -> Origin {
    Origin::Entry(Claim { created: entry.metadata.created, exported: entry.exported.clone() })
}

/// The address, if the block has only one.
fn single(block: &IpBlock) -> Option<IpAddr> {
    let net = block.canonical();
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

fn tcp_ports(entry: &ServiceEntry) -> impl Iterator<Item = &EntryPort> {
    entry.ports.iter().filter(|port| port.transport == Transport::Tcp)
}

fn app_protocol(protocol: &str) -> AppProtocol {
    match protocol {
        "http" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" => AppProtocol::Tls,
        "tcp" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

/// Where an endpoint of an entry with a map of ports listens: that map comes first, as in Istio. `named`
/// looks up a port in it by the entry's name for the port.
pub(super) fn mappings(entry: &ServiceEntry, named: impl Fn(&str) -> Option<u16>) -> Vec<PortMapping> {
    mapped(entry, |port| named(&port.name).or(port.target))
}

/// Where a selected pod listens: at `targetPort`, or else at its own port of the same name. `named` looks up
/// the pod's port.
pub(super) fn pod_mappings(entry: &ServiceEntry, named: impl Fn(&str) -> Option<u16>) -> Vec<PortMapping> {
    mapped(entry, |port| port.target.or_else(|| named(&port.name)))
}

/// Where nothing else is said, the target port is the entry's own.
fn mapped(entry: &ServiceEntry, target: impl Fn(&EntryPort) -> Option<u16>) -> Vec<PortMapping> {
    let mapping = |port: &EntryPort| PortMapping {
        service_port: port.port,
        target_port: target(port).unwrap_or(port.port),
    };
    tcp_ports(entry).map(mapping).collect()
}

/// An entry and its hosts.
pub(super) struct Claims<'a> {
    entry: &'a ServiceEntry,
    settings: &'a Settings,
    /// Each host, and the object that it belongs to instead, if it does.
    hosts: Vec<(&'a str, Option<String>)>,
}

impl<'a> Claims<'a> {
    pub(super) fn of(entry: &'a ServiceEntry, store: &'a Store, settings: &'a Settings) -> Self {
        let rival = |host: &'a String| match owner(store, settings, &key(entry, host)) {
            Some(Owner::Entry(other)) if other.metadata.name == entry.metadata.name => None,
            Some(Owner::Entry(other)) => {
                Some(format!("ServiceEntry {}, which is older", other.metadata.name))
            }
            Some(Owner::Service(service)) => {
                Some(format!("Service {}/{}", service.metadata.namespace, service.metadata.name))
            }
            // Only for an entry that is not in the store.
            None => None,
        };
        let hosts = entry.hosts.iter().map(|host| (host.as_str(), rival(host))).collect();
        Self { entry, settings, hosts }
    }

    /// The services of the hosts that belong to the entry.
    pub(super) fn won(&self) -> impl Iterator<Item = ServiceKey> {
        self.won_hosts().map(|host| key(self.entry, host))
    }

    fn won_hosts(&self) -> impl Iterator<Item = &'a str> {
        self.hosts.iter().filter(|(_, rival)| rival.is_none()).map(|(host, _)| *host)
    }

    /// The inline endpoints. With DNS resolution and without endpoints, each host is an endpoint.
    pub(super) fn endpoints(&self, context: &Context<'a>) -> impl Iterator<Item = Workload> {
        let entry = self.entry;
        let mut found: Vec<Workload> = Vec::new();
        let mut uids: BTreeMap<String, usize> = BTreeMap::new();
        let mut add = |endpoint: &WorkloadEntry, hosts: Vec<&str>| {
            let named = |name: &str| endpoint.ports.get(name).copied();
            let mappings = mappings(entry, named);
            let address = endpoint.address.map_or_else(|| endpoint.hostname.clone(), |a| a.to_string());
            let times = uids.entry(address.clone()).or_default();
            *times += 1;
            let again = if *times > 1 { format!("/{times}") } else { String::new() };
            let mut workload = context.endpoint(endpoint);
            workload.uid = WorkloadUid(
                format!(
                    "{}/networking.istio.io/ServiceEntry/{}/{}/{address}{again}",
                    self.settings.cluster, entry.metadata.namespace, entry.metadata.name
                )
                .into(),
            );
            workload.services = hosts.into_iter().map(|host| (key(entry, host), mappings.clone())).collect();
            // It runs on no node of the mesh: policies and labels of the namespace do not apply to it.
            workload.policies.clear();
            workload.direct = true;
            workload.same_node_tls = false;
            workload.require_waypoint = false;
            workload.origin = origin(entry);
            found.push(workload);
        };
        for endpoint in &entry.endpoints {
            add(endpoint, self.won_hosts().collect());
        }
        if entry.resolution == Resolution::Dns && entry.endpoints.is_empty() && entry.selector.is_empty() {
            for host in self.won_hosts() {
                let endpoint = WorkloadEntry {
                    metadata: entry.metadata.clone(),
                    hostname: host.to_owned(),
                    ..WorkloadEntry::default()
                };
                add(&endpoint, vec![host]);
            }
        }
        found.into_iter()
    }

    /// The conditions of the entry. The mesh has its services already.
    pub(super) fn conditions(&self, object: &ObjectKey, mesh: &Mesh) -> Vec<Condition> {
        debug_assert_eq!(object.kind, Kind::ServiceEntry);
        let entry = self.entry;
        let mut said = Vec::new();
        let mut say = |field: String, accepted: bool, message: String| {
            said.push(Condition { object: object.clone(), field: Some(field), accepted, message });
        };
        let none_won = self.hosts.iter().all(|(_, rival)| rival.is_some());
        for (index, (host, rival)) in self.hosts.iter().enumerate() {
            if let Some(rival) = rival {
                let message = format!("{host} is not in force here: it belongs to {rival}");
                say(format!("spec.hosts[{index}]"), !none_won, message);
            }
        }
        let mut lost = Vec::new();
        if !none_won {
            let ports: Vec<u16> = tcp_ports(entry).map(|port| port.port).collect();
            let addresses = entry.addresses.iter().enumerate();
            let single = addresses.filter_map(|(index, block)| Some((index, single(block)?)));
            let judged =
                single.map(|(index, address)| (index, contested::of_entry(mesh, entry, &ports, address)));
            lost.extend(judged);
        }
        let none_kept = !lost.is_empty() && lost.iter().all(|(_, lost)| lost.entirely);
        for (index, lost) in lost {
            for message in lost.messages {
                say(format!("spec.addresses[{index}]"), !none_kept, message);
            }
        }
        for (index, block) in entry.addresses.iter().enumerate().filter(|(_, block)| single(block).is_none())
        {
            let message = format!("{block} is a range: only single addresses are taken to the mesh");
            say(format!("spec.addresses[{index}]"), true, message);
        }
        if entry.addresses.is_empty() && entry.resolution != Resolution::None {
            let message =
                "no address: connections are not taken to the mesh, since none is allocated".to_owned();
            say("spec.addresses".to_owned(), true, message);
        }
        for (index, endpoint) in entry.endpoints.iter().enumerate() {
            if let Some(address) = endpoint.address.filter(|address| !is_peer_address(*address)) {
                let message = format!("{address} cannot be the address of a peer: nothing is sent to it");
                say(format!("spec.endpoints[{index}].address"), true, message);
            }
        }
        if said.is_empty() { vec![Condition::accepted(object.clone())] } else { said }
    }
}

fn key(entry: &ServiceEntry, host: &str) -> ServiceKey {
    ServiceKey { namespace: entry.metadata.namespace.as_str().into(), hostname: host.into() }
}
