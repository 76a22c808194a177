//! The node's own addresses, which probes come from: read from its interfaces, again and again.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrLike as _;

use crate::daemon::Node;
use crate::report::chain;

/// Addresses of nodes change rarely, and only probes hang on them.
const INTERVAL: Duration = Duration::from_secs(10);

/// The addresses of the namespace's interfaces, loopback left out.
pub(crate) fn own() -> io::Result<BTreeSet<IpAddr>> {
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
        let now = match own() {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(%error, "reading the node's addresses");
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
    fn loopback_is_not_an_address_of_the_node() {
        let own = own().unwrap();
        assert!(own.iter().all(|address| !address.is_loopback()), "{own:?}");
    }
}
