//! Waiting for states.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Between two looks: soon at first, then seldom enough that looking does not delay what is waited for.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(400));

/// Calls `check` until it succeeds; after the deadline its last error is the error.
pub(crate) fn within<T>(deadline: Duration, what: &str, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let (start, mut pause) = (Instant::now(), PAUSES.0);
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > deadline => {
                return Err(error).with_context(|| format!("not within {} s: {what}", deadline.as_secs()));
            }
            Err(_) => {
                std::thread::sleep(pause);
                pause = (pause * 5 / 4).min(PAUSES.1);
            }
        }
    }
}
