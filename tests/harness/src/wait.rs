//! Waiting for states: poll until it holds, within a deadline that a loaded machine can keep.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long a state may take. Generous: it only costs time when something is broken.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks: an eighth of the time waited so far, but at least and at most this. Soon at first, then
/// seldom enough that looking does not delay what is waited for.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(400));

/// Calls `check` until it succeeds; after the deadline its last error is the error.
pub fn eventually<T>(what: &str, check: impl FnMut() -> Result<T>) -> Result<T> {
    within(DEADLINE, what, check)
}

/// [`eventually`] with a deadline of one's own.
pub fn within<T>(deadline: Duration, what: &str, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > deadline => {
                return Err(error).with_context(|| format!("not within {} s: {what}", deadline.as_secs()));
            }
            Err(_) => std::thread::sleep((start.elapsed() / 8).clamp(PAUSE.0, PAUSE.1)),
        }
    }
}
