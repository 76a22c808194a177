//! What the metrics know of the open connections that the kernel carries: [`Counted`].

use std::collections::{HashMap, HashSet};

use ambit_proxy::report::Bytes;
use ambit_proxy::report::observed::Carried;
use parking_lot::Mutex;

/// By the cookie of the server's socket: how many of each connection's bytes this daemon has counted. What an
/// earlier daemon counted does not matter: its counters ended with it.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u64, Bytes>,
    /// Those whose end was reported last: the kernel records an end a moment before it removes the flow.
    just_closed: HashSet<u64>,
}

impl Counted {
    /// Starts a new round: returns those whose end was reported in the last one, and forgets them.
    pub(super) fn begin(&self) -> HashSet<u64> {
        std::mem::take(&mut self.0.lock().just_closed)
    }

    /// Whether its end was reported since [`begin`](Self::begin).
    pub(super) fn is_closed(&self, cookie: u64) -> bool {
        self.0.lock().just_closed.contains(&cookie)
    }

    /// What to report of one that is open, with what it carried until now.
    pub(super) fn open(&self, cookie: u64, total: Bytes) -> Carried {
        let known = self.0.lock().open.get(&cookie).copied();
        Carried { total, counted: known.unwrap_or_default() }
    }

    /// Records the counted bytes.
    pub(super) fn counted(&self, cookie: u64, counted: Bytes) {
        self.0.lock().open.insert(cookie, counted);
    }

    /// What to report of one that has closed.
    pub(super) fn closed(&self, cookie: Option<u64>, total: Bytes) -> Carried {
        let mut table = self.0.lock();
        let known = cookie.and_then(|cookie| {
            table.just_closed.insert(cookie);
            table.open.remove(&cookie)
        });
        Carried { total, counted: known.unwrap_or_default() }
    }

    /// Drops those that are no longer tracked and whose end was not recorded.
    pub(super) fn keep(&self, listed: &HashSet<u64>) {
        self.0.lock().open.retain(|cookie, _| listed.contains(cookie));
    }
}

#[cfg(test)]
mod tests;
