//! What the metrics know of the open connections that the kernel carries: [`Counted`].

use std::collections::{HashMap, HashSet};

use ambit_daemon_kit::telemetry::connection::Bytes;
use ambit_daemon_kit::telemetry::connection::observed::Carried;
use parking_lot::Mutex;

/// By the cookie of the server's socket: how much of what each connection has carried this daemon has
/// counted. What an earlier one may have counted is not asked: its counters ended with it, and metrics agree
/// with the log, which tells all bytes.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u64, Bytes>,
    /// Those whose end was reported last: the kernel records an end a moment before it stops listing the
    /// connection.
    just_closed: HashSet<u64>,
}

impl Counted {
    /// Forgets whose end was reported, and returns it: others are about to be.
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

    /// This much of it is counted now.
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

    /// Drops those that are not listed any more and whose end was not recorded.
    pub(super) fn keep(&self, listed: &HashSet<u64>) {
        self.0.lock().open.retain(|cookie, _| listed.contains(cookie));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u64) -> Bytes {
        Bytes { from_client: number, from_server: 2 * number }
    }

    #[test]
    fn every_byte_counts_once() {
        // What was counted of it while it was open, and what is left to count at the end of 100.
        let rows: [(&str, &[u64], u64); 2] = [("never seen open", &[], 100), ("seen open", &[10, 30], 70)];
        for (name, seen, left) in rows {
            let all = Counted::default();
            for total in seen {
                let carried = all.open(7, bytes(*total));
                assert_eq!(carried.total, bytes(*total), "{name}");
                all.counted(7, carried.total);
            }
            let end = all.closed(Some(7), bytes(100));
            assert_eq!(end.total.from_client - end.counted.from_client, left, "{name}");
            assert_eq!(end.total.from_server - end.counted.from_server, 2 * left, "{name}");
            assert!(all.is_closed(7) && all.begin().contains(&7) && !all.is_closed(7), "{name}");
        }
    }

    #[test]
    fn what_is_listed_no_more_is_dropped() {
        let all = Counted::default();
        all.counted(1, bytes(1));
        all.counted(2, bytes(2));
        all.keep(&HashSet::from([2]));
        assert_eq!(all.open(1, bytes(3)).counted, Bytes::default());
        assert_eq!(all.open(2, bytes(3)).counted, bytes(2));
    }
}
