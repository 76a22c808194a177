//! Captured destinations: whole, or by the port and the client's namespace ([`Capture`]).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ambit_abi::{Address, Destination, NamespaceTag, PartKey};

use crate::{Dataplane, Error};

/// Which connections of enrolled pods to an address are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capture {
    /// All of them.
    Whole,
    /// Those that match one of the parts; without parts none.
    Parts(BTreeSet<Part>),
}

/// Connections to an address that are captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// From pods of this namespace; `None`: from all pods.
    pub namespace: Option<String>,
    /// To this port; `None`: to every port, where a namespace is named.
    pub port: Option<u16>,
}

impl Part {
    fn key(&self, address: Address) -> PartKey {
        let namespace = self.namespace.as_deref().map_or(NamespaceTag::ANY, NamespaceTag::of);
        PartKey { address, port: self.port.unwrap_or(0), namespace }
    }
}

impl Dataplane {
    /// Reads the state of an earlier daemon.
    pub(crate) fn read_parts(&self) -> Result<(), Error> {
        let mut partial = self.partial.lock();
        for key in self.parts.keys()? {
            partial.entry(key.address).or_default().insert(key);
        }
        Ok(())
    }

    /// The destinations that are captured, whole or in part.
    pub fn destinations(&self) -> Result<BTreeSet<IpAddr>, Error> {
        let parts = self.partial.lock().keys().copied().collect::<Vec<_>>();
        Ok(self.destinations.keys()?.into_iter().chain(parts).map(IpAddr::from).collect())
    }

    /// Sets which connections to an address are captured. In between, what was captured before and is
    /// afterwards stays captured.
    pub fn capture(&self, address: IpAddr, capture: &Capture) -> Result<(), Error> {
        let address = Address::from(address);
        let mut partial = self.partial.lock();
        let wanted: BTreeSet<PartKey> = match capture {
            Capture::Whole => BTreeSet::new(),
            Capture::Parts(parts) => parts.iter().map(|part| part.key(address)).collect(),
        };
        let held = partial.entry(address).or_default();
        for key in &wanted {
            if !held.contains(key) {
                self.parts.put(key, &1)?;
                held.insert(*key);
            }
        }
        match capture {
            Capture::Whole => self.destinations.put(&address, &Destination::ALL)?,
            Capture::Parts(parts) if parts.is_empty() => self.destinations.remove(&address)?,
            Capture::Parts(_) => self.destinations.put(&address, &Destination::PARTS)?,
        }
        let stale: Vec<PartKey> = held.difference(&wanted).copied().collect();
        for key in stale {
            self.parts.remove(&key)?;
            held.remove(&key);
        }
        if wanted.is_empty() {
            partial.remove(&address);
        }
        Ok(())
    }

    /// Captures all connections of enrolled pods to this destination.
    pub fn add_destination(&self, address: IpAddr) -> Result<(), Error> {
        self.capture(address, &Capture::Whole)
    }

    /// Stops capturing connections to this destination.
    pub fn remove_destination(&self, address: IpAddr) -> Result<(), Error> {
        self.capture(address, &Capture::Parts(BTreeSet::new()))
    }
}
