//! The addresses of a pod's interfaces, and news of their changes: [`Interfaces`]. When a pod ends, its
//! interfaces go before its addresses are given to another.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// linux/rtnetlink.h: links, addresses of either family.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// The interfaces of one network namespace.
#[derive(Debug)]
pub(crate) struct Interfaces {
    changes: OwnedFd,
    /// The addresses at first.
    addresses: BTreeSet<IpAddr>,
}

impl Interfaces {
    /// Watches those of the namespace that the calling thread is in.
    pub(crate) fn watch() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let changes = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(changes.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        // After it is told of changes: none is missed.
        Ok(Self { changes, addresses: addresses()? })
    }

    /// The addresses that the interfaces had at first.
    pub(crate) fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.addresses
    }

    /// Whether anything changed since the last time. What it was does not matter.
    pub(crate) fn changed(&self) -> bool {
        let mut buffer = [0; 4096];
        let mut changed = false;
        // Bounded: a pod may go on changing them.
        for _ in 0..1000 {
            match recv(self.changes.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                // The socket's queue was full: something has changed.
                Ok(1..) | Err(nix::Error::ENOBUFS) => changed = true,
                Err(nix::Error::EINTR) => {}
                Ok(0) | Err(_) => break,
            }
        }
        changed
    }
}

impl AsFd for Interfaces {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

/// What a change of a pod's addresses means for the verdicts that lead to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has them all.
    None,
    /// It has lost some: those verdicts that still hold are given again.
    Some,
    /// It has lost all: it ends.
    All,
}

/// Compares the addresses that a pod had with those that it has.
pub(crate) fn compare(had: &BTreeSet<IpAddr>, has: &BTreeSet<IpAddr>) -> Change {
    if had.is_subset(has) {
        Change::None
    } else if had.is_disjoint(has) {
        Change::All
    } else {
        Change::Some
    }
}

/// The addresses of the interfaces of the namespace that the calling thread is in, but for loopback and
/// link-local ones.
pub(crate) fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    let usable = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    Ok(addresses.filter(usable).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_addresses_are_found() {
        let set =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        let rows = [
            ("as before", &["10.0.0.2"][..], &["10.0.0.2"][..], Change::None),
            ("one more", &["10.0.0.2"], &["10.0.0.2", "fd00::2"], Change::None),
            ("one less", &["10.0.0.2", "fd00::2"], &["fd00::2"], Change::Some),
            ("none left", &["10.0.0.2", "fd00::2"], &[], Change::All),
            ("another", &["10.0.0.2"], &["10.0.0.3"], Change::All),
            ("none at first", &[], &[], Change::None),
        ];
        for (name, had, has, expected) in rows {
            assert_eq!(compare(&set(had), &set(has)), expected, "{name}");
        }
    }
}
