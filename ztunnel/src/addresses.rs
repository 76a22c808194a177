//! The node's own addresses, which the kubelet's probes come from, read periodically: from the interfaces, or
//! from `/proc/PID/net` where the daemon runs in a network namespace of its own (entering the node's would
//! need a capability).
//!
//! Entry points: [`of_node`], then [`follow`].

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ambit_core::chain;
use ambit_loader::Dataplane;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrLike as _;

use crate::error::Error;

const IPV4: &str = "fib_trie";
const IPV6: &str = "if_inet6";
/// Addresses of nodes change rarely, and only probes depend on them.
const INTERVAL: Duration = Duration::from_secs(2);

/// The node's addresses: of the network that `/proc/PID/net` shows, or of our own.
pub(crate) fn of_node(network: Option<&Path>) -> Result<BTreeSet<IpAddr>, Error> {
    let Some(network) = network else {
        return own().map_err(|source| Error::System { operation: "read the node's addresses", source });
    };
    let read = |name: &str| {
        let path = network.join(name);
        match std::fs::read_to_string(&path) {
            // A kernel without IPv6 has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name == IPV6 => Ok(String::new()),
            other => other.map_err(|source| Error::File { operation: "read", path, source }),
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

/// Keeps the kernel's copy up to date; does not return.
pub(crate) async fn follow(dataplane: Arc<Dataplane>, network: Option<PathBuf>, mut known: BTreeSet<IpAddr>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let (network, dataplane) = (network.clone(), dataplane.clone());
        // A node may have tens of thousands of addresses: not on a worker.
        let followed = tokio::task::spawn_blocking(move || {
            let now = of_node(network.as_deref())
                .inspect_err(|error| {
                    tracing::warn!(error = chain(error), "failed to read the node's addresses");
                })
                .ok()?;
            (now == known || write(&dataplane, &now)).then_some(now)
        });
        // None: as unknown, so that they are written again.
        known = followed.await.ok().flatten().unwrap_or_default();
    }
}

/// How many of the node's addresses the kernel has no room for.
static LEFT_OUT: AtomicUsize = AtomicUsize::new(0);

/// For the metric.
pub(crate) fn left_out() -> usize {
    LEFT_OUT.load(Ordering::Relaxed)
}

/// Gives the kernel the node's addresses. What it has no room for is logged and counted: probes from there
/// are plaintext like any other. False: they could not be written.
pub(crate) fn write(dataplane: &Dataplane, addresses: &BTreeSet<IpAddr>) -> bool {
    match dataplane.set_node_addresses(addresses) {
        Ok(left_out) => {
            LEFT_OUT.store(left_out, Ordering::Relaxed);
            if left_out > 0 {
                tracing::error!(left_out, "no room for all of the node's addresses");
            }
            true
        }
        Err(error) => {
            tracing::error!(error = chain(&error), "failed to write the node's addresses");
            false
        }
    }
}

#[cfg(test)]
mod tests;
