//! Waiting for a time of day, as certificates say it ([`wait_until`]).

use std::time::{Duration, SystemTime};

/// The clock may be set, and the machine may sleep: it is looked at again at least this often.
const AT_MOST: Duration = Duration::from_mins(10);

/// Resolves when the time has come; at once if it has passed.
pub(crate) async fn wait_until(time: SystemTime) {
    while let Ok(left) = time.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(AT_MOST)).await;
    }
}
