//! ServiceEntry → services by host name, and their inline endpoints.
//!
//! A host belongs to one object of its namespace: the Kubernetes Service of that name, or else the oldest
//! entry that claims it. An entry's other hosts are left out, and its conditions say so.
//!
//! Entry points: [`owner`] of a host and [`Claims`] of an entry.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::condition::Condition;
use super::context::{Context, is_peer_address};
use super::object::{
    EntryPort, Kind, ObjectKey, Resolution, Service, ServiceEntry, Transport, WorkloadEntry,
};
use super::service;
use super::settings::Settings;
use super::store::Store;
use crate::model::{
    self, AppProtocol, IpBlock, LoadBalancing, LoadBalancingMode, PortMapping, ServiceKey, Workload,
    WorkloadUid,
};

/// The object that a host name belongs to.
pub(super) enum Owner<'a> {
    Service(&'a Service),
    Entry(&'a ServiceEntry),
}

impl Owner<'_> {
    /// The service of the host name.
    pub(super) fn service(&self, key: &ServiceKey, settings: &Settings) -> Option<model::Service> {
        match self {
            Self::Service(object) => service::derive(object, settings),
            Self::Entry(entry) => Some(of_host(entry, key)),
        }
    }
}

/// The object that the host name belongs to in its namespace, if any.
pub(super) fn owner<'a>(store: &'a Store, settings: &Settings, key: &ServiceKey) -> Option<Owner<'a>> {
    let contents = store.contents(&key.namespace)?;
    let suffix = format!(".{}.svc.{}", key.namespace, settings.domain);
    let named = key.hostname.strip_suffix(&suffix).and_then(|name| contents.services.get(name));
    if let Some(service) = named.filter(|service| !service.external_name) {
        return Some(Owner::Service(service));
    }
    let claiming =
        contents.service_entries.values().filter(|entry| entry.hosts.iter().any(|h| **h == *key.hostname));
    claiming.min_by_key(|entry| age(entry)).map(Owner::Entry)
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
                target_port: port.target,
                app_protocol: app_protocol(&port.protocol),
            })
            .collect(),
        subject_alt_names: entry.subject_alt_names.clone(),
        waypoint: None,
        load_balancing: LoadBalancing { mode, ..LoadBalancing::default() },
    }
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

/// Where an endpoint listens for the ports of an entry. `named` looks up the endpoint's own port by name.
pub(super) fn mappings(entry: &ServiceEntry, named: impl Fn(&str) -> Option<u16>) -> Vec<PortMapping> {
    let mapping = |port: &EntryPort| PortMapping {
        service_port: port.port,
        target_port: named(&port.name).unwrap_or(port.target),
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
            Some(Owner::Service(service)) => Some(format!("Service {}", service.metadata.name)),
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

    /// The conditions of the entry.
    pub(super) fn conditions(&self, object: &ObjectKey) -> Vec<Condition> {
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
        if entry.restricted {
            let message = "is not honoured: every namespace sees the service".to_owned();
            say("spec.exportTo".to_owned(), true, message);
        }
        if said.is_empty() { vec![Condition::accepted(object.clone())] } else { said }
    }
}

fn key(entry: &ServiceEntry, host: &str) -> ServiceKey {
    ServiceKey { namespace: entry.metadata.namespace.as_str().into(), hostname: host.into() }
}
