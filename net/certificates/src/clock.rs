//! The time of day, which tests set, and how it is shown.

use std::sync::Arc;
use std::time::SystemTime;

/// What time it is; tests have their own.
pub(crate) type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

pub(crate) fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| format!("{time:?}"), |time| time.to_string())
}
