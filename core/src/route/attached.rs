//! The routes of one service: [`ServiceRoutes::table`] has those that a request is held against.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use super::rule::Route;
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

/// Tables by port; `rest` is for ports that no route names.
#[derive(Debug, Default)]
struct Ports {
    named: HashMap<u16, Table>,
    rest: Option<Table>,
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
    /// that has consumer routes for the port, else the service's own. `None`: no route is attached, and the
    /// request goes to the service's endpoints. In a table that has no rule for it, it is answered with 404.
    pub fn table(&self, port: u16, client: &str) -> Option<&Table> {
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
            (!routes.is_empty()).then(|| Table::new(&routes))
        };
        let named: BTreeSet<u16> = attached.iter().filter_map(|it| it.port).collect();
        let named = named.into_iter().filter_map(|port| Some((port, table(Some(port))?)));
        Self { named: named.collect(), rest: table(None) }
    }

    fn at(&self, port: u16) -> Option<&Table> {
        self.named.get(&port).or(self.rest.as_ref())
    }
}
