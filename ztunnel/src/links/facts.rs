//! What the kernel says of a pod's link: [`find`].

use std::io;
use std::os::fd::AsFd as _;

use ambit_core::chain;
use ambit_core::link::{Facts, NodeEnd};
use ambit_diag::{Interface, Links};
use ambit_enrol::NetworkNamespace;
use ambit_loader::Dataplane;

use crate::netns::within;
use crate::pods::Pod;

/// What was found of a pod's link.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) facts: Facts,
    /// The index of the interface at the node's end; 0: not found.
    pub(super) interface: u32,
    /// The address of the pod's interface.
    pub(super) pod: [u8; 6],
    /// The address of the bridge that the node's end is a port of.
    pub(super) bridge: Option<[u8; 6]>,
}

/// Scope of an address in `/proc/net/if_inet6` that is valid beyond its link.
const GLOBAL: &str = "00";

/// Reads the pod's interfaces in its namespace, and the other end in the node's: in the daemon's own, or in
/// `node`.
pub(super) fn find(
    dataplane: &Dataplane,
    pod: &Pod,
    node: Option<&NetworkNamespace>,
) -> Result<Found, String> {
    let failed = |error: io::Error| error.to_string();
    // The numbers by which one namespace knows another are given when they are first asked for, so the pod's
    // side is read first.
    let (interfaces, ipv6) = within(&pod.descriptor(), || Ok((interfaces(), has_ipv6()?))).map_err(failed)?;
    let mut interfaces = interfaces.map_err(|error| chain(&error))?;
    interfaces.retain(|interface| interface.up && !interface.loopback);
    let mut found = Found::default();
    found.facts.ipv6 = ipv6;
    found.facts.interfaces = interfaces.iter().map(|interface| interface.kind.clone()).collect();
    if let [own] = &interfaces[..] {
        found.pod = own.address.unwrap_or_default();
        let look = || Ok(node_end(dataplane, pod, own));
        let end = match node {
            None => look(),
            Some(namespace) => within(namespace, look),
        };
        if let Some(end) = end.map_err(failed)?? {
            found.interface = end.interface.index;
            found.bridge = end.bridge;
            found.facts.node_end = Some(end.facts);
        }
    }
    Ok(found)
}

fn interfaces() -> Result<Vec<Interface>, ambit_diag::Error> {
    Links::open()?.interfaces()
}

struct End {
    interface: Interface,
    bridge: Option<[u8; 6]>,
    facts: NodeEnd,
}

/// The other end of a pod's interface, in the namespace that the thread is in. None: it is not here.
fn node_end(dataplane: &Dataplane, pod: &Pod, own: &Interface) -> Result<Option<End>, String> {
    let failed = |error: ambit_diag::Error| chain(&error);
    let Some(index) = own.peer.filter(|_| own.peer_namespace.is_some()) else { return Ok(None) };
    let mut links = Links::open().map_err(failed)?;
    let Some(interface) = links.interface(index).map_err(failed)? else { return Ok(None) };
    // An interface of this index may be here by chance: its own other end must be the pod's.
    let number = links.namespace_number(pod.descriptor().as_fd()).map_err(failed)?;
    if interface.kind != "veth"
        || interface.peer != Some(own.index)
        || number.is_none()
        || interface.peer_namespace != number
    {
        return Ok(None);
    }
    let master = interface.master.map(|index| links.interface(index)).transpose().map_err(failed)?.flatten();
    let mut foreign = links.filters(interface.index).map_err(failed)?;
    if interface.xdp {
        foreign.push("xdp".to_owned());
    }
    let programs = dataplane.foreign_link_programs(interface.index).map_err(|error| chain(&error))?;
    foreign.extend(programs.into_iter().map(|id| format!("tcx program {id}")));
    let strict = strict_reverse_path(&interface.name).map_err(|error| error.to_string())?;
    let facts = NodeEnd {
        master: master.as_ref().map(|master| master.kind.clone()),
        strict_reverse_path: strict,
        foreign,
    };
    let bridge = master.and_then(|master| master.address);
    Ok(Some(End { interface, bridge, facts }))
}

/// Whether source addresses of IPv4 packets from the interface are checked strictly: the greater of two
/// settings counts, and 2 is a loose check.
fn strict_reverse_path(interface: &str) -> io::Result<bool> {
    let setting = |name: &str| -> io::Result<u8> {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"))?;
        text.trim().parse().map_err(io::Error::other)
    };
    Ok(setting("all")?.max(setting(interface)?) == 1)
}

/// Whether the namespace that the thread is in has an IPv6 address beyond its links.
fn has_ipv6() -> io::Result<bool> {
    // Of the thread: `/proc/net` shows the namespace of the process's first thread.
    match std::fs::read_to_string("/proc/thread-self/net/if_inet6") {
        // An address, its interface, prefix length, scope, flags, and a name.
        Ok(table) => Ok(table.lines().any(|line| line.split_whitespace().nth(3) == Some(GLOBAL))),
        // A kernel without IPv6 has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
