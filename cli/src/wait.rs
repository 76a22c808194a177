//! Waiting for a state of the cluster, with progress on standard output.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::output::outln;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// What one look at the cluster found.
pub(crate) enum Look {
    /// The goal is reached.
    Reached,
    /// What is missing, one item per line.
    Missing(Vec<String>),
}

impl Look {
    /// The goal is reached when nothing is missing.
    pub(crate) fn for_missing(missing: Vec<String>) -> Self {
        if missing.is_empty() { Self::Reached } else { Self::Missing(missing) }
    }
}

/// Looks until the goal is reached or the timeout ends. What is missing is printed whenever it changes.
pub(crate) async fn until<F>(goal: &'static str, timeout: Duration, mut look: F) -> Result<(), Error>
where
    F: AsyncFnMut() -> Result<Look, Error>,
{
    let began = Instant::now();
    let mut printed: Vec<String> = Vec::new();
    loop {
        // An API server may restart meanwhile: its errors are waited out.
        let missing = match look().await {
            Ok(Look::Reached) => return Ok(()),
            Ok(Look::Missing(missing)) => missing,
            Err(error @ Error::Api { .. }) => vec![ambit_kube::error::chain(&error)],
            Err(error) => return Err(error),
        };
        if began.elapsed() >= timeout {
            let missing = missing.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n");
            return Err(Error::Late { goal, seconds: timeout.as_secs(), missing });
        }
        if missing != printed {
            for line in missing.iter().filter(|line| !printed.contains(line)) {
                outln!("  {line}")?;
            }
            printed = missing;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
