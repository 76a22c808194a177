//! The routes of one service: [`ServiceRoutes::table`] has those that a request is held against.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use super::connections::ConnectionTable;
use super::rule::{Route, RouteKind};
use super::table::Table;
use crate::model::ServiceKey;

/// All routes of a service, as the mesh holds them. A service without any has none of these: its requests go
/// to its own endpoints.
///
/// Equality and the wire know only what is attached; the tables are made where they are first asked for.
#[derive(Debug)]
pub struct ServiceRoutes {
    service: ServiceKey,
    attached: Vec<Attached>,
    tables: OnceLock<Tables>,
}

/// A route, and which of the service's requests are held against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The route.
    pub route: Arc<Route>,
    /// Requests to this port of the service; `None`: to every port.
    pub port: Option<u16>,
    /// Requests of clients of this namespace alone (a consumer route); `None`: of all clients.
    pub consumer: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Tables {
    producer: Ports,
    consumers: HashMap<Arc<str>, Ports>,
}

/// Routes by port; `rest` is for ports that no route names.
#[derive(Debug, Default)]
struct Ports {
    named: HashMap<u16, PortRoutes>,
    rest: Option<PortRoutes>,
}

/// What the routes of a port are held against.
#[derive(Debug)]
pub enum PortRoutes {
    /// Each request (HTTPRoute, GRPCRoute).
    Requests(Table),
    /// Each connection (TLSRoute, TCPRoute).
    Connections(ConnectionTable),
}

impl ServiceRoutes {
    /// The routes that are attached to a service, in any order.
    pub fn new(service: ServiceKey, mut attached: Vec<Attached>) -> Self {
        let order = |it: &Attached| (it.route.key.clone(), it.port, it.consumer.clone());
        attached.sort_by_cached_key(order);
        Self { service, attached, tables: OnceLock::new() }
    }

    /// Whose they are.
    pub fn service(&self) -> &ServiceKey {
        &self.service
    }

    /// What is attached, ordered by route.
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// The routes for a request to this port by a client of this namespace: those of its own namespace, where
    /// that has consumer routes for the port, else the service's own. `None`: no route of requests is
    /// attached, and the request goes to the service's endpoints. In a table that has no rule for it, it is
    /// answered with 404.
    pub fn table(&self, port: u16, client: &str) -> Option<&Table> {
        match self.at(port, client)? {
            PortRoutes::Requests(table) => Some(table),
            PortRoutes::Connections(_) => None,
        }
    }

    /// The routes of this port for a client of this namespace, whatever they route.
    pub fn at(&self, port: u16, client: &str) -> Option<&PortRoutes> {
        let tables = self.tables.get_or_init(|| Tables::of(&self.attached));
        let consumer = tables.consumers.get(client).and_then(|ports| ports.at(port));
        consumer.or_else(|| tables.producer.at(port))
    }
}

impl PartialEq for ServiceRoutes {
    fn eq(&self, other: &Self) -> bool {
        self.service == other.service && self.attached == other.attached
    }
}

impl Eq for ServiceRoutes {}

impl Tables {
    fn of(attached: &[Attached]) -> Self {
        let consumers: BTreeSet<&Arc<str>> = attached.iter().filter_map(|it| it.consumer.as_ref()).collect();
        let ports = |consumer: Option<&Arc<str>>| {
            let of: Vec<&Attached> = attached.iter().filter(|it| it.consumer.as_ref() == consumer).collect();
            Ports::of(&of)
        };
        Self {
            producer: ports(None),
            consumers: consumers.into_iter().map(|it| (it.clone(), ports(Some(it)))).collect(),
        }
    }
}

impl PortRoutes {
    /// Of the kind that comes first, if they are of several: `derive` attaches one kind alone to a port.
    fn of(routes: &[Arc<Route>]) -> Option<Self> {
        let first = routes.iter().map(|route| route.key.kind).min()?;
        let of_one = |one: &&Arc<Route>| {
            let kind = one.key.kind;
            kind == first || (kind.is_of_requests() && first.is_of_requests())
        };
        let routes: Vec<Arc<Route>> = routes.iter().filter(of_one).cloned().collect();
        Some(match first {
            RouteKind::Grpc | RouteKind::Http => Self::Requests(Table::new(&routes)),
            RouteKind::Tls => Self::Connections(ConnectionTable::tls(&routes)),
            RouteKind::Tcp => Self::Connections(ConnectionTable::tcp(&routes)),
        })
    }
}

impl Ports {
    fn of(attached: &[&Attached]) -> Self {
        // Of one object only once, though several of its parents may mean the same port.
        let table = |port: Option<u16>| {
            let mut routes: Vec<Arc<Route>> = Vec::new();
            for it in attached.iter().filter(|it| it.port.is_none() || it.port == port) {
                if !routes.contains(&it.route) {
                    routes.push(it.route.clone());
                }
            }
            PortRoutes::of(&routes)
        };
        let named: BTreeSet<u16> = attached.iter().filter_map(|it| it.port).collect();
        let named = named.into_iter().filter_map(|port| Some((port, table(Some(port))?)));
        Self { named: named.collect(), rest: table(None) }
    }

    fn at(&self, port: u16) -> Option<&PortRoutes> {
        self.named.get(&port).or(self.rest.as_ref())
    }
}
