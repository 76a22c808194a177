//! Bounds how many connections the clients of one workload have to it: [`Clients`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::memory::Account;

/// The connections to one workload, by their clients' addresses, and the workload's memory. Clones are the
/// same.
#[derive(Clone, Debug, Default)]
pub struct Clients(Arc<Mutex<Counts>>, Account);

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    of: HashMap<IpAddr, usize>,
}

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) of_all: usize,
    pub(super) of_one: usize,
}

/// One connection's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    clients: Clients,
    address: IpAddr,
}

impl Clients {
    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.0.lock().total
    }

    /// What the workload's tunnels hold, those that it opens among them.
    pub fn memory(&self) -> &Account {
        &self.1
    }

    /// Identifies the workload.
    pub(super) fn id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Whether there is a place for one more of this client.
    pub(super) fn admit(&self, address: IpAddr, most: Most) -> bool {
        self.0.lock().admit(address, most)
    }

    /// Takes a place, if there is one.
    pub(super) fn enter(&self, address: IpAddr, most: Most) -> Option<Place> {
        let mut counts = self.0.lock();
        if !counts.admit(address, most) {
            return None;
        }
        counts.total += 1;
        *counts.of.entry(address).or_default() += 1;
        Some(Place { clients: self.clone(), address })
    }
}

impl Counts {
    /// A client may have as many as are still free: however many clients take what they can get, there is a
    /// place for the next.
    fn admit(&self, address: IpAddr, most: Most) -> bool {
        let own = self.of.get(&address).copied().unwrap_or(0);
        own < most.of_one.min(most.of_all.saturating_sub(self.total))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.clients.0.lock();
        counts.total -= 1;
        if let Some(own) = counts.of.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                counts.of.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests;
