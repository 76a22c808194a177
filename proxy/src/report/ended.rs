//! What every ending leaves ([`report_end`]), and the metrics of all connections ([`show`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use ambit_daemon_kit::telemetry::exposition::{Exposition, Family};
use ambit_daemon_kit::telemetry::instruments::Counters;

use super::connection::{Bytes, ConnectionInfo, Direction, Ending, Path};
use super::series::{AllSeries, Labels};
use super::{access_log, recent};

/// The process's counters, like the recorder they live in.
pub(super) static ALL: LazyLock<AllSeries> = LazyLock::new(|| AllSeries::new(*IDLE.get_or_init(|| HOUR)));

/// How long names are shown that no connection uses.
static IDLE: OnceLock<Duration> = OnceLock::new();
const HOUR: Duration = Duration::from_hours(1);

/// Every ending that is reported, in order or not.
static ENDED: Counters<3> = Counters::new(
    "ambit_connections_ended_total",
    "Connections that ended, were refused or could not be made, by reason.",
    ["reason", "direction", "path"],
);

/// How many are open now.
pub(super) static OPEN: Open = Open([const { [const { AtomicU64::new(0) }; Path::ALL.len()] }; 3]);
const OPEN_FAMILY: Family =
    Family::gauge("ambit_connections_open", "Connections that are open now, by direction and path.");

/// The open ones, by direction and path.
#[derive(Debug)]
pub(super) struct Open([[AtomicU64; Path::ALL.len()]; 3]);

impl Open {
    pub(super) fn of(&self, direction: Direction, path: Path) -> &AtomicU64 {
        &self.0[direction as usize][path as usize]
    }

    fn show(&self, all: &mut Exposition) {
        let mut open = all.family(&OPEN_FAMILY);
        for direction in [Direction::Outbound, Direction::Inbound, Direction::Through] {
            for path in Path::ALL {
                let count = self.of(direction, path).load(Ordering::Relaxed);
                open.sample(&[("direction", direction.as_str()), ("path", path.as_str())], count);
            }
        }
    }
}

/// How long metrics keep showing names that no connection used, if none that is open has them. An hour unless
/// set, once, before the first connection is counted.
pub fn forget_series_after(idle: Duration) {
    let known = IDLE.set(idle);
    debug_assert!(known.is_ok(), "connections were counted before");
}

/// Writes the metrics of all connections.
pub fn show(all: &mut Exposition) {
    ALL.show(all);
    OPEN.show(all);
    ENDED.show(all);
}

pub(super) fn report_failed(connection: &ConnectionInfo, tried: Duration, ending: &Ending) {
    ALL.of(Labels::new(connection, ending.flag)).failed();
    report_end(connection, Bytes::default(), tried, ending);
}

/// What every ending leaves, once.
pub(super) fn report_end(connection: &ConnectionInfo, bytes: Bytes, duration: Duration, ending: &Ending) {
    ENDED.count([ending.reason.name(), connection.direction.as_str(), connection.path.as_str()]);
    access_log::write(connection, bytes, duration, ending);
    recent::remember(connection, bytes, duration, ending);
}
