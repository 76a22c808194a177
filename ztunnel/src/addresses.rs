//! The node's own addresses, which probes come from, read again and again: from its interfaces, or from a file where the
//! daemon runs on a network of its own and somebody else sees the interfaces.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrLike as _;

use crate::daemon::Node;
use crate::error::Error;
use crate::report::chain;

/// Addresses of nodes change rarely, and only probes hang on them.
const INTERVAL: Duration = Duration::from_secs(2);

/// The node's addresses. A file that is not there yet holds none: until it is, no probe passes unchecked.
pub(crate) fn of_node(file: Option<&Path>) -> Result<BTreeSet<IpAddr>, Error> {
    let failed = |source| Error::System { operation: "reading the node's addresses", source };
    let Some(path) = file else { return own().map_err(failed) };
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(source) => Err(Error::File { operation: "reading", path: path.to_owned(), source }),
    }
}

/// One address a line.
fn parse(text: &str) -> io::Result<BTreeSet<IpAddr>> {
    let wrong =
        |line: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{line:?} is not an address"));
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| line.parse().map_err(|_| wrong(line)))
        .collect()
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
        let now = match of_node(node.config.node_addresses.as_deref()) {
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
    fn a_file_of_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("addresses");
        assert_eq!(of_node(Some(&path)).unwrap(), BTreeSet::new(), "not there yet");
        std::fs::write(&path, "10.0.0.1\n\n fd00::1\n").unwrap();
        let expected = ["10.0.0.1", "fd00::1"].map(|address| address.parse().unwrap());
        assert_eq!(of_node(Some(&path)).unwrap(), BTreeSet::from(expected));
        std::fs::write(&path, "10.0.0.1\nhere\n").unwrap();
        let error = chain(&of_node(Some(&path)).unwrap_err());
        assert!(error.contains("\"here\" is not an address"), "{error}");
    }

    #[test]
    fn loopback_is_not_an_address_of_the_node() {
        let own = own().unwrap();
        assert!(own.iter().all(|address| !address.is_loopback()), "{own:?}");
    }
}
