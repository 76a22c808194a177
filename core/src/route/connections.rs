//! The routes of connections of a service's port: [`ConnectionTable`].
//!
//! TLSRoutes are found by the server name of the client's hello, a TCPRoute serves every connection.

use std::collections::HashMap;
use std::sync::Arc;

use super::rule::Route;
use super::server_name::ServerNameMatch;

/// The TLSRoutes or TCPRoutes of one service and port. It is built when configuration changes and never
/// changed.
#[derive(Debug)]
pub struct ConnectionTable {
    is_tls: bool,
    exact: HashMap<Box<str>, Arc<Route>>,
    below: HashMap<Box<str>, Arc<Route>>,
    /// For what none of the names mean.
    any: Option<Arc<Route>>,
}

impl ConnectionTable {
    /// Of TLSRoutes. Of several for one name the oldest serves.
    pub fn tls(routes: &[Arc<Route>]) -> Self {
        let mut table = Self { is_tls: true, exact: HashMap::new(), below: HashMap::new(), any: None };
        for route in oldest_first(routes) {
            for name in &route.server_names {
                let (names, name) = match name {
                    ServerNameMatch::Exact(name) => (&mut table.exact, name),
                    ServerNameMatch::Below(name) => (&mut table.below, name),
                };
                names.entry(name.clone()).or_insert_with(|| route.clone());
            }
            if route.server_names.is_empty() {
                table.any.get_or_insert_with(|| route.clone());
            }
        }
        table
    }

    /// Of TCPRoutes: the oldest serves.
    pub fn tcp(routes: &[Arc<Route>]) -> Self {
        let any = oldest_first(routes).first().copied().cloned();
        Self { is_tls: false, exact: HashMap::new(), below: HashMap::new(), any }
    }

    /// Whether connections are routed by their client's hello: then what is not TLS has no route.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The route of a connection, by its server name where it has one: the name itself, then wildcards, the
    /// longest first. None where no route matches, and the connection is refused.
    pub fn find(&self, server_name: Option<&str>) -> Option<&Arc<Route>> {
        let named = server_name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let parents = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
            self.exact.get(name.as_str()).or_else(|| parents.into_iter().find_map(|it| self.below.get(it)))
        });
        named.or(self.any.as_ref())
    }
}

fn oldest_first(routes: &[Arc<Route>]) -> Vec<&Arc<Route>> {
    let mut routes: Vec<&Arc<Route>> = routes.iter().collect();
    routes.sort_by(|one, other| (one.created, &one.key).cmp(&(other.created, &other.key)));
    routes
}
