//! The node's own addresses, which probes come from, read again and again: from its interfaces, or from
//! `/proc` where the daemon runs on a network of its own. `/proc/PID/net` needs no capability, as entering
//! the namespace would.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrLike as _;

use crate::daemon::Node;
use crate::error::Error;
use crate::report::chain;

const IPV4: &str = "fib_trie";
const IPV6: &str = "if_inet6";
/// Addresses of nodes change rarely, and only probes hang on them.
const INTERVAL: Duration = Duration::from_secs(2);

/// The node's addresses: of the network that `/proc/PID/net` shows, or of our own.
pub(crate) fn of_node(network: Option<&Path>) -> Result<BTreeSet<IpAddr>, Error> {
    let Some(network) = network else {
        return own().map_err(|source| Error::System { operation: "reading the node's addresses", source });
    };
    let read = |name: &str| {
        let path = network.join(name);
        match std::fs::read_to_string(&path) {
            // A kernel without IPv6 has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name == IPV6 => Ok(String::new()),
            other => other.map_err(|source| Error::File { operation: "reading", path, source }),
        }
    };
    let addresses = local_ipv4(&read(IPV4)?)
        .into_iter()
        .map(IpAddr::V4)
        .chain(local_ipv6(&read(IPV6)?).into_iter().map(IpAddr::V6));
    Ok(addresses.filter(|address| !address.is_loopback()).collect())
}

/// The local addresses of a routing table as `fib_trie` shows it: a leaf `|-- 10.0.0.1`, then `/32 host
/// LOCAL`.
fn local_ipv4(trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut leaf: Option<Ipv4Addr> = None;
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(leaf);
        }
    }
    found
}

/// The addresses of `if_inet6`: 32 digits, then what does not matter here.
fn local_ipv6(table: &str) -> Vec<Ipv6Addr> {
    let address =
        |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok().map(Ipv6Addr::from);
    table.lines().filter_map(address).collect()
}

/// The addresses of the namespace's interfaces, loopback left out.
fn own() -> io::Result<BTreeSet<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        match address.family()? {
            nix::sys::socket::AddressFamily::Inet => Some(IpAddr::V4(address.as_sockaddr_in()?.ip())),
            nix::sys::socket::AddressFamily::Inet6 => Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())),
            _ => None,
        }
    });
    Ok(addresses.filter(|address| !address.is_loopback()).collect())
}

/// Keeps the kernel's side informed, for ever.
pub(crate) async fn follow(node: Arc<Node>, mut known: BTreeSet<IpAddr>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let now = match of_node(node.config.node_network.as_deref()) {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the node's addresses");
                continue;
            }
        };
        if now == known {
            continue;
        }
        match node.kernel.dataplane().set_node_addresses(&now) {
            Ok(()) => known = now,
            Err(error) => tracing::error!(error = chain(&error), "writing the node's addresses"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_shows_the_same_addresses() {
        let shown = of_node(Some(Path::new("/proc/self/net"))).unwrap();
        assert_eq!(shown, own().unwrap());
    }

    #[test]
    fn what_proc_shows() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- \
                    10.0.0.0/8 2 0 2\n        |-- 10.1.0.0\n           /16 link UNICAST\n        |-- \
                    10.1.0.1\n           /32 host LOCAL\n        |-- 10.1.255.255\n           /32 link \
                    BROADCAST\n";
        assert_eq!(local_ipv4(trie), ["10.1.0.1".parse::<Ipv4Addr>().unwrap()]);
        let table = "fd000000000000000000000000000001 02 40 00 80 eth0\n00000000000000000000000000000001 01 \
                     80 10 80 lo\n";
        let expected: Vec<Ipv6Addr> = ["fd00::1", "::1"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(local_ipv6(table), expected);
    }

    #[test]
    fn loopback_is_not_an_address_of_the_node() {
        let own = own().unwrap();
        assert!(own.iter().all(|address| !address.is_loopback()), "{own:?}");
    }
}
