//! Reports of connections carried by the kernel, made from its records; some connections appear only when
//! they close. Nothing is held for them here.
//!
//! For each record `Opened`: [`opened`]; `Closed`: [`closed`]; `Refused`: [`refused`]. Records are
//! independent: after a restart of the daemon, a connection may be seen only closing.
//!
//! While one is open, [`carried`] counts its bytes so far; the caller keeps what it returns
//! ([`Carried::counted`]) and passes that to [`closed`], so that no byte counts twice. Without it all bytes
//! count at the end. Calling it, even with nothing new, also keeps the connection's names in the metrics:
//! unused ones are forgotten after an hour.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connection::{Bytes, ConnectionInfo, Direction, Ending, Flag, Path};
use super::ended::{ALL, OPEN, report_end, report_failed};
use super::series::Labels;

/// What a connection has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Since it was opened.
    pub total: Bytes,
    /// How much of that [`carried`] has counted in this process.
    pub counted: Bytes,
}

/// How many connections of a path are open now; nothing counts them here, as their beginning may not have
/// been seen.
pub fn open_now(direction: Direction, path: Path, count: u64) {
    OPEN.of(direction, path).store(count, Ordering::Relaxed);
}

/// Counts a connection as opened.
pub fn opened(connection: &ConnectionInfo) {
    ALL.of(Labels::new(connection, Flag::None)).opened();
}

/// Counts what an open connection has carried since `carried.counted`, and returns what to give next time. A
/// total that is below what was counted counts nothing.
pub fn carried(connection: &ConnectionInfo, carried: Carried) -> Carried {
    let new = carried.total.since(carried.counted);
    ALL.of(Labels::new(connection, Flag::None)).carried(new);
    let counted = Bytes {
        from_client: carried.counted.from_client + new.from_client,
        from_server: carried.counted.from_server + new.from_server,
    };
    Carried { total: carried.total, counted }
}

/// Reports the end of a connection that was open for `duration`.
pub fn closed(connection: &ConnectionInfo, carried: Carried, duration: Duration, ending: &Ending) {
    let open = ALL.of(Labels::new(connection, Flag::None));
    open.carried(carried.total.since(carried.counted));
    match ending.flag {
        Flag::None => open.closed(),
        flag => ALL.of(Labels::new(connection, flag)).closed(),
    }
    report_end(connection, carried.total, duration, ending);
}

/// Reports a connection that the kernel refused.
pub fn refused(connection: &ConnectionInfo, ending: &Ending) {
    report_failed(connection, Duration::ZERO, ending);
}
