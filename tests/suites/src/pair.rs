//! The smallest mesh that several suites use: a client, a server on the other node, a neighbour outside.

use std::net::SocketAddr;

use ambit_harness::{Builder, Family, Lab, NamespaceSpec, PodSpec, ServiceSpec};

/// Where the server listens.
pub const APP: u16 = 7000;

/// The pods `shop/web`, `shop/db` and `legacy/old`, and a service for the second.
pub fn builder() -> Builder {
    Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/db").node(1))
        .pod(PodSpec::new("legacy/old"))
        .service(ServiceSpec::new("shop/db").port(80, APP))
}

/// Where the database is reached: as a pod over IPv6, as a service over IPv4.
pub fn targets(lab: &Lab) -> Vec<SocketAddr> {
    vec![
        SocketAddr::new(lab.pod("shop/db").ip(Family::V6), APP),
        SocketAddr::new(lab.service("shop/db", Family::V4), 80),
    ]
}
