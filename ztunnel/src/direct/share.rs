//! Entries of maps that pods share, which were not written because their pod has its share.

use ambit_daemon_kit::telemetry::instruments::Counters;

/// Entries of shared maps that were not written because their pod has its share: the daemon carries its
/// connections instead.
pub(crate) static SHARE_USED: Counters<1> = Counters::new(
    "ambit_map_share_exhausted_total",
    "Entries that were not written because their pod has its share of the map, by map.",
    ["map"],
);

/// Counts an entry that was not written. The connections that it would have been for take the daemon's path.
pub(super) fn count_if_used(written: &Result<bool, ambit_loader::Error>, map: &str) {
    if let Ok(false) = written {
        SHARE_USED.count([map]);
    }
}
