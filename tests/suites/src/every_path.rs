//! A lab with a client for each path to one server: from another node by tunnel, on one node directly, from
//! outside the mesh natively and in plaintext that the daemon checks.
//!
//! Entry points: [`builder`], to which a suite adds what it needs, and [`start`].

use std::net::SocketAddr;

use ambit_harness::{Builder, Family, Lab, NamespaceSpec, PodSpec, ServiceSpec};
use anyhow::Result;

use crate::paths::policy_in_force;
use crate::talk::Server;

/// Where the servers listen.
pub const APP: u16 = 7000;
/// The port of the database's service.
pub const FRONT: u16 = 80;

/// Has the kernel hand plaintext for `shop/checked` to the daemon: the policy allows everything, which only
/// the daemon can find out.
const CHECKED: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: allow-all}
spec: {selector: {matchLabels: {app: checked}}, action: ALLOW, rules: [{}]}
";

/// Servers `shop/db` and `shop/checked` on the second node, where the client `shop/near` is too; the clients
/// `shop/far` and, outside the mesh, `legacy/old` are on the first.
pub fn builder() -> Builder {
    Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/far"))
        .pod(PodSpec::new("shop/near").node(1))
        .pod(PodSpec::new("shop/db").node(1))
        .pod(PodSpec::new("shop/checked").node(1))
        .pod(PodSpec::new("legacy/old"))
        .service(ServiceSpec::new("shop/db").port(FRONT, APP))
        .object("checked", CHECKED)
}

/// Starts the lab, with servers in `shop/db`, `shop/checked` and the other pods that are named.
pub fn start(builder: Builder, others: &[&str]) -> Result<(Lab, Vec<Server>)> {
    let lab = builder.start()?;
    policy_in_force(&lab, "shop/checked", "shop/allow-all", true)?;
    let pods = ["shop/db", "shop/checked"].iter().chain(others);
    let servers = pods.map(|pod| Server::start(&lab.pod(pod), pod, APP)).collect::<Result<_>>()?;
    Ok((lab, servers))
}

/// Where a pod's server is reached.
pub fn at_pod(lab: &Lab, pod: &str, family: Family) -> SocketAddr {
    SocketAddr::new(lab.pod(pod).ip(family), APP)
}

/// Where the database's service is reached.
pub fn at_service(lab: &Lab, family: Family) -> SocketAddr {
    SocketAddr::new(lab.service("shop/db", family), FRONT)
}
