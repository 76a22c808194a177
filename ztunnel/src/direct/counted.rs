//! What the metrics know of the open connections that the kernel carries: [`Counted`].

use std::collections::{HashMap, HashSet};

use ambit_runtime::telemetry::connection::Bytes;
use ambit_runtime::telemetry::connection::observed::Carried;
use parking_lot::Mutex;

/// By the cookie of the server's socket: how much of what each connection has carried is counted.
#[derive(Debug)]
pub(super) struct Counted {
    /// When this daemon began, by the clock of the kernel's records. What older connections carried until it first saw
    /// them, an earlier daemon has counted.
    began: u64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u64, Bytes>,
    /// Those whose end was reported last: the kernel records an end a moment before it stops listing the connection.
    just_closed: HashSet<u64>,
}

impl Counted {
    pub(super) fn new(began: u64) -> Self {
        Self { began, table: Mutex::default() }
    }

    /// Forgets whose end was reported, and returns it: others are about to be.
    pub(super) fn begin(&self) -> HashSet<u64> {
        std::mem::take(&mut self.table.lock().just_closed)
    }

    /// Whether its end was reported since [`begin`](Self::begin).
    pub(super) fn is_closed(&self, cookie: u64) -> bool {
        self.table.lock().just_closed.contains(&cookie)
    }

    /// What to report of one that is open, with what it carried until now.
    pub(super) fn open(&self, cookie: u64, opened: u64, total: Bytes) -> Carried {
        let known = self.table.lock().open.get(&cookie).copied();
        Carried { total, counted: known.unwrap_or_else(|| self.before(opened, total)) }
    }

    /// This much of it is counted now.
    pub(super) fn counted(&self, cookie: u64, counted: Bytes) {
        self.table.lock().open.insert(cookie, counted);
    }

    /// What to report of one that has closed.
    pub(super) fn closed(&self, cookie: Option<u64>, opened: u64, total: Bytes) -> Carried {
        let mut table = self.table.lock();
        let known = cookie.and_then(|cookie| {
            table.just_closed.insert(cookie);
            table.open.remove(&cookie)
        });
        Carried { total, counted: known.unwrap_or_else(|| self.before(opened, total)) }
    }

    /// Drops those that are not listed any more and whose end was not recorded.
    pub(super) fn keep(&self, listed: &HashSet<u64>) {
        self.table.lock().open.retain(|cookie, _| listed.contains(cookie));
    }

    /// How much of one that was not seen before is counted.
    fn before(&self, opened: u64, total: Bytes) -> Bytes {
        if opened < self.began { total } else { Bytes::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: u64 = 100;

    fn bytes(number: u64) -> Bytes {
        Bytes { from_client: number, from_server: 2 * number }
    }

    #[test]
    fn every_byte_since_the_daemon_began_counts_once() {
        // When it was opened, what was counted of it while it was open, and what is left to count at the end of 100.
        let rows: [(&str, u64, &[u64], u64); 4] = [
            ("never seen open", BEGAN, &[], 100),
            ("seen open", BEGAN, &[10, 30], 70),
            ("an earlier daemon's, seen open", BEGAN - 1, &[40, 60], 40),
            ("an earlier daemon's, never seen open", BEGAN - 1, &[], 0),
        ];
        for (name, opened, seen, left) in rows {
            let all = Counted::new(BEGAN);
            for total in seen {
                let carried = all.open(7, opened, bytes(*total));
                assert_eq!(carried.total, bytes(*total), "{name}");
                all.counted(7, carried.total);
            }
            let end = all.closed(Some(7), opened, bytes(100));
            assert_eq!(end.total.from_client - end.counted.from_client, left, "{name}");
            assert_eq!(end.total.from_server - end.counted.from_server, 2 * left, "{name}");
            assert!(all.is_closed(7) && all.begin().contains(&7) && !all.is_closed(7), "{name}");
        }
    }

    #[test]
    fn what_is_listed_no_more_is_dropped() {
        let all = Counted::new(BEGAN);
        all.counted(1, bytes(1));
        all.counted(2, bytes(2));
        all.keep(&HashSet::from([2]));
        assert_eq!(all.open(1, BEGAN, bytes(3)).counted, Bytes::default());
        assert_eq!(all.open(2, BEGAN, bytes(3)).counted, bytes(2));
    }
}
