//! What a route's references to its parents mean: [`parents`], and of one reference [`namespace`] and
//! [`port`].

use std::collections::BTreeSet;

use super::super::object::{ParentRef, RouteObject, Service};
use super::super::service;

/// The Services that a route names as its parents, by namespace and name.
pub(in crate::derive) fn parents(object: &RouteObject) -> BTreeSet<(String, String)> {
    let services = object.parents.iter().filter(|parent| is_service(parent));
    services.map(|parent| (namespace(parent, object).to_owned(), parent.name.clone())).collect()
}

pub(super) fn is_service(parent: &ParentRef) -> bool {
    parent.kind == "Service" && (parent.group.is_empty() || parent.group == "core")
}

pub(super) fn namespace<'a>(parent: &'a ParentRef, object: &'a RouteObject) -> &'a str {
    parent.namespace.as_deref().unwrap_or(&object.metadata.namespace)
}

/// The port of the Service that a parent means; `None`: every port. An error is for the route's status.
pub(super) fn port(parent: &ParentRef, service: &Service) -> Result<Option<u16>, String> {
    let named = format!("Service {}/{}", service.metadata.namespace, service.metadata.name);
    if service.external_name || service.cluster_ips.is_empty() {
        return Err(format!("{named} has no cluster address, so nothing is addressed to it"));
    }
    let section = match &parent.section {
        None => None,
        Some(name) => {
            let found = service::tcp_ports(service).find(|port| port.name == *name);
            Some(found.ok_or_else(|| format!("{named} has no TCP port named {name}"))?.port)
        }
    };
    if let Some(port) = parent.port
        && !service::tcp_ports(service).any(|declared| declared.port == port)
    {
        return Err(format!("{named} has no TCP port {port}"));
    }
    match (parent.port, section) {
        (Some(port), Some(section)) if port != section => {
            Err(format!("port {port} of {named} does not have the name in sectionName"))
        }
        (port, section) => Ok(port.or(section)),
    }
}
