//! The lab's network, laid out as a CNI plugin would: per node a bridge for its pods, or a route to each of
//! them ([`Layout`]); routes between nodes over an underlay.
//!
//! Everything lives in namespaces of the lab, so addresses are fixed and labs do not disturb each other.
//! Duplicate-address detection is off: IPv6 addresses work at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::netns::Netns;

/// Where the controller is on the underlay.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
/// A host outside the cluster, behind the underlay.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The same host's IPv6 address.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10);
const OUTSIDE_UNDERLAY: u8 = 3;
/// A bridge's own address, set as CNI plugins set it: without one it takes its ports' lowest and changes with
/// them, and pods that hold the old one send nowhere until their neighbour entry runs out (30 s and more).
const BRIDGE: &str = "02:00:00:00:00:01";

/// The address that pods on routed links take for their gateway; the node answers for it.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";

/// How a node's pods are connected to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// All to one bridge.
    #[default]
    Bridge,
    /// Each by a link and a route of its own, with reverse-path filtering.
    Routed,
    /// The same, for IPv4 only.
    RoutedIpv4,
}

/// A node's address on the underlay.
pub fn node_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 0, 10 + octet(node))
}

/// A node's IPv6 address on the underlay.
pub fn node_v6(node: usize) -> Ipv6Addr {
    underlay_v6(10 + octet(node))
}

/// The `index`th pod's address on a node.
pub fn pod_v4(node: usize, index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, octet(node), 10 + octet(index))
}

/// The `index`th pod's IPv6 address on a node.
pub fn pod_v6(node: usize, index: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, u16::from(octet(node)), 0, 0, 0, 0, 10 + u16::from(octet(index)))
}

/// The `index`th service's cluster addresses.
pub fn service(index: usize) -> [IpAddr; 2] {
    let host = 10 + octet(index);
    [
        Ipv4Addr::new(10, 96, 0, host).into(),
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(host)).into(),
    ]
}

/// A node's address among its own pods: what they see as their gateway, and where probes come from.
pub fn gateway_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, octet(node), 1)
}

fn octet(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}

fn underlay_v6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, u16::from(host))
}

/// A fresh namespace with `lo` up and forwarding as asked.
pub(crate) fn namespace(name: &str, forwarding: bool) -> Result<Netns> {
    let netns = Netns::create(name)?;
    let forwarding = if forwarding { "1" } else { "0" };
    netns.sysctl(&[
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/ip_forward", forwarding),
        ("ipv6/conf/all/forwarding", forwarding),
        // Both sides of fast open, so that its rows try what they say.
        ("ipv4/tcp_fastopen", "3"),
    ])?;
    netns.ip("link set lo up\n")?;
    Ok(netns)
}

/// The switch between the nodes.
pub(crate) fn underlay(name: &str) -> Result<Netns> {
    let netns = namespace(name, false)?;
    netns.ip("link add br0 type bridge\nlink set br0 up\n")?;
    Ok(netns)
}

/// Plugs a namespace into the underlay, with an address of each family.
fn plug(underlay: &Netns, netns: &Netns, port: &str, host: u8) -> Result<()> {
    netns.ip(&format!("link add eth0 type veth peer name {port} netns {}\n", underlay.name()))?;
    underlay.ip(&format!("link set {port} master br0\nlink set {port} up\n"))?;
    netns.ip(&format!(
        "addr add 172.16.0.{host}/24 dev eth0\naddr add {}/64 dev eth0 nodad\nlink set eth0 up\n",
        underlay_v6(host)
    ))
}

/// Where the controller runs. Waypoints in pods reach it too.
pub(crate) fn control(underlay: &Netns, name: &str, nodes: usize) -> Result<Netns> {
    let netns = namespace(name, false)?;
    plug(underlay, &netns, "control", CONTROL.octets()[3])?;
    for node in 0..nodes {
        netns.ip(&routes_to_pods(node))?;
    }
    Ok(netns)
}

/// A host outside the cluster, which knows the way to every node's pods.
pub(crate) fn outside(underlay: &Netns, name: &str, nodes: usize) -> Result<Netns> {
    let netns = namespace(name, false)?;
    plug(underlay, &netns, "outside", OUTSIDE_UNDERLAY)?;
    netns.ip(&format!("addr add {OUTSIDE}/32 dev lo\naddr add {OUTSIDE_V6}/128 dev lo nodad\n"))?;
    for node in 0..nodes {
        netns.ip(&routes_to_pods(node))?;
    }
    Ok(netns)
}

/// A node: its underlay address, its pods' bridge, its routes to the other nodes' pods and to the outside.
pub(crate) fn node(underlay: &Netns, name: &str, node: usize, nodes: usize, layout: Layout) -> Result<Netns> {
    let netns = namespace(name, true)?;
    plug(underlay, &netns, &format!("node{node}"), 10 + octet(node))?;
    let gateway = gateway_v4(node);
    netns.ip(&match layout {
        Layout::Bridge => format!(
            "link add cni0 address {BRIDGE} type bridge\naddr add {gateway}/24 dev cni0\naddr add \
             fd00:10:{node:x}::1/64 dev cni0 nodad\nlink set cni0 up\n"
        ),
        Layout::Routed | Layout::RoutedIpv4 => {
            format!(
                "addr add {gateway}/32 dev lo\naddr add {GATEWAY_V4}/32 dev lo\naddr add \
                 fd00:10:{node:x}::1/128 dev lo nodad\n"
            )
        }
    })?;
    netns.ip(&format!(
        "route add 203.0.113.0/24 via 172.16.0.{OUTSIDE_UNDERLAY}\nroute add 2001:db8:113::/64 via {}\n",
        underlay_v6(OUTSIDE_UNDERLAY)
    ))?;
    for other in (0..nodes).filter(|other| *other != node) {
        netns.ip(&routes_to_pods(other))?;
    }
    Ok(netns)
}

fn routes_to_pods(node: usize) -> String {
    format!(
        "route add 10.10.{node}.0/24 via {}\nroute add fd00:10:{node:x}::/64 via {}\n",
        node_v4(node),
        node_v6(node)
    )
}

/// A pod's namespace, connected to its node.
pub(crate) fn pod(
    node_netns: &Netns,
    name: &str,
    node: usize,
    index: usize,
    layout: Layout,
) -> Result<Netns> {
    let netns = namespace(name, false)?;
    let port = format!("pod{index}");
    let (v4, v6) = (pod_v4(node, index), pod_v6(node, index));
    netns.ip(&format!("link add eth0 type veth peer name {port} netns {}\n", node_netns.name()))?;
    if layout == Layout::Bridge {
        node_netns.ip(&format!("link set {port} master cni0\nlink set {port} up\n"))?;
        netns.ip(&format!(
            "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via {}\nroute add default via fd00:10:{node:x}::1\n",
            gateway_v4(node)
        ))?;
        return Ok(netns);
    }
    node_netns.ip(&format!("link set {port} up\nroute add {v4}/32 dev {port}\n"))?;
    node_netns.sysctl(&[(&format!("ipv4/conf/{port}/rp_filter"), "1")])?;
    netns.ip(&format!(
        "addr add {v4}/32 dev eth0\nlink set eth0 up\nroute add {GATEWAY_V4} dev eth0 scope link\n\
         route add default via {GATEWAY_V4}\n"
    ))?;
    if layout == Layout::Routed {
        node_netns
            .ip(&format!("addr add {GATEWAY_V6}/64 dev {port} nodad\nroute add {v6}/128 dev {port}\n"))?;
        netns.ip(&format!(
            "addr add {v6}/128 dev eth0 nodad\nroute add default via {GATEWAY_V6} dev eth0\n"
        ))?;
    }
    Ok(netns)
}
