//! The shop that several suites use: two services over two nodes, a second namespace of the mesh, and
//! neighbours outside it.

use std::net::IpAddr;

use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, ServiceSpec};
use anyhow::Result;

use crate::talk::Server;

pub const CART: u16 = 8080;
pub const DB: u16 = 5432;
/// Declared as a probe of the database.
pub const PROBE: u16 = 8086;

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Starts the shop and a server in every pod that is asked.
pub fn shop() -> Result<(Lab, Vec<Server>)> {
    let lab = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::mesh("bank"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/cart-1").label("app", "cart").account("cart").port("http", CART))
        .pod(PodSpec::new("shop/cart-2").label("app", "cart").account("cart").port("http", CART).node(1))
        .pod(PodSpec::new("shop/db").node(1).probe(PROBE))
        .pod(PodSpec::new("bank/teller"))
        .pod(PodSpec::new("legacy/old"))
        .pod(PodSpec::new("legacy/far").node(1))
        .service(ServiceSpec::new("shop/cart").port(80, CART).named_port(81, "http"))
        .service(ServiceSpec::new("shop/db").port(DB, DB))
        .start()?;
    let mut servers = Vec::new();
    for (pod, port) in [
        ("shop/web", CART),
        ("shop/cart-1", CART),
        ("shop/cart-2", CART),
        ("shop/db", DB),
        ("shop/db", PROBE),
        ("legacy/far", CART),
    ] {
        servers.push(Server::start(&lab.pod(pod), pod, port)?);
    }
    Ok((lab, servers))
}

/// The address as an IPv6 socket writes it.
pub fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        IpAddr::V6(_) => address,
    }
}
