//! Captured destinations: whole, or by the port and the client's namespace ([`Capture`]).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use ambit_abi::{Address, Destination, NamespaceTag, PartKey};

use crate::map::Inserted;
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

impl Capture {
    /// Whether no connection is captured.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Parts(parts) if parts.is_empty())
    }
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
        let entries = self.destinations.entries()?;
        self.destination_count.store(entries.len(), Ordering::Relaxed);
        Ok(entries.into_iter().map(|(address, _)| address).chain(parts).map(IpAddr::from).collect())
    }

    /// Sets which connections to an address are captured. In between, what was captured before and is
    /// afterwards stays captured. False: a map has no room, and all destinations must be captured
    /// ([`Dataplane::capture_all`]).
    pub fn capture(&self, address: IpAddr, capture: &Capture) -> Result<bool, Error> {
        let address = Address::from(address);
        let mut partial = self.partial.lock();
        let wanted: BTreeSet<PartKey> = match capture {
            Capture::Whole => BTreeSet::new(),
            Capture::Parts(parts) => parts.iter().map(|part| part.key(address)).collect(),
        };
        let held = partial.entry(address).or_default();
        for key in &wanted {
            if !held.contains(key) {
                if self.parts.insert(key, &1)? == Inserted::Full {
                    return Ok(false);
                }
                held.insert(*key);
            }
        }
        let written = match capture {
            Capture::Whole => self.list(&address, Destination::ALL)?,
            Capture::Parts(parts) if parts.is_empty() => self.unlist(&address)?,
            Capture::Parts(_) => self.list(&address, Destination::PARTS)?,
        };
        if !written {
            return Ok(false);
        }
        let stale: Vec<PartKey> = held.difference(&wanted).copied().collect();
        for key in stale {
            self.parts.remove(&key)?;
            held.remove(&key);
        }
        if wanted.is_empty() {
            partial.remove(&address);
        }
        Ok(true)
    }

    /// False: there is no room.
    fn list(&self, address: &Address, destination: Destination) -> Result<bool, Error> {
        if self.destinations.replace(address, &destination)? {
            return Ok(true);
        }
        let inserted = self.destinations.insert(address, &destination)?;
        if inserted == Inserted::New {
            self.destination_count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(inserted != Inserted::Full)
    }

    fn unlist(&self, address: &Address) -> Result<bool, Error> {
        if self.destinations.take(address)? {
            self.destination_count.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(true)
    }

    /// Captures all connections of enrolled pods to this destination. False: there is no room for it.
    pub fn add_destination(&self, address: IpAddr) -> Result<bool, Error> {
        self.capture(address, &Capture::Whole)
    }

    /// Stops capturing connections to this destination.
    pub fn remove_destination(&self, address: IpAddr) -> Result<(), Error> {
        self.capture(address, &Capture::Parts(BTreeSet::new())).map(drop)
    }
}
