//! Clocks of the kernel, and numbers made from them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::Error;

/// The monotonic clock, which kernel programs read, in nanoseconds.
pub(crate) fn monotonic() -> Result<u64, Error> {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// A number that is unique on this machine until it reboots: nanoseconds since boot, greater than all that
/// this process made and than `held`, the greatest that other processes may have made.
pub(crate) fn fresh(held: u64) -> Result<u64, Error> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = nanoseconds(ClockId::CLOCK_BOOTTIME)?.max(held.saturating_add(1));
    let next = |last: u64| Some(now.max(last + 1));
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_else(|last| last);
    Ok(now.max(last + 1))
}

fn nanoseconds(clock: ClockId) -> Result<u64, Error> {
    let now = clock_gettime(clock).map_err(|error| Error::Clock(error.into()))?;
    u64::try_from(Duration::from(now).as_nanos()).map_err(|error| Error::Clock(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_numbers_increase() {
        let mut last = 0;
        for _ in 0..10_000 {
            let number = fresh(0).expect("a clock");
            assert!(number > last);
            last = number;
        }
        let ahead = last + 3_600_000_000_000;
        assert_eq!(fresh(ahead).expect("a clock"), ahead + 1, "greater than the held one");
        assert_eq!(fresh(0).expect("a clock"), ahead + 2, "and never smaller again");
    }
}
