//! Why connections end, in the words of logs and metrics.

use ambit_core::Denial;
use ambit_core::model::PolicyKey;
use ambit_loader::Reason;
use ambit_runtime::telemetry::connection::{Ending, Flag};

/// An error with all of its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Transparent wrappers repeat what they wrap.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// An ending nobody need look at.
pub(crate) fn orderly() -> Ending {
    Ending { reason: "closed", flag: Flag::None, error: None, policy: None }
}

/// An ending that carried bytes, or was about to, and broke.
pub(crate) fn broken(reason: Reason, error: impl Into<String>) -> Ending {
    Ending { reason: reason.name(), flag: Flag::None, error: Some(error.into()), policy: None }
}

/// A connection that could not be made.
pub(crate) fn unmade(reason: Reason, flag: Flag, error: impl Into<String>) -> Ending {
    Ending { reason: reason.name(), flag, error: Some(error.into()), policy: None }
}

/// A connection that was decided against. Only a policy's no is a denial; the rest are failures to connect.
pub(crate) fn denied(denial: &Denial) -> Ending {
    let flag = match denial {
        Denial::PolicyDenied { .. } | Denial::PolicyNotAllowed { .. } | Denial::PolicyMissing { .. } => {
            Flag::Denied
        }
        _ => Flag::ConnectFailed,
    };
    let policy: Option<PolicyKey> = denial.policy().cloned();
    Ending { reason: denial.reason(), flag, error: Some(denial.to_string()), policy }
}
