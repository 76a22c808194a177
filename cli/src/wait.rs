//! Waiting for a state of the cluster, telling how it goes.

use std::time::{Duration, Instant};

use crate::error::Error;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);

/// What one look said.
pub(crate) enum Look {
    Reached,
    /// What is missing, one thing a line.
    Missing(Vec<String>),
}

/// Looks until the goal is reached or the time is up. What is missing is printed whenever it differs.
pub(crate) async fn until<F>(goal: &'static str, timeout: Duration, mut look: F) -> Result<(), Error>
where
    F: AsyncFnMut() -> Result<Look, Error>,
{
    let began = Instant::now();
    let mut said: Vec<String> = Vec::new();
    loop {
        // An API server that restarts is worth waiting for too.
        let missing = match look().await {
            Ok(Look::Reached) => return Ok(()),
            Ok(Look::Missing(missing)) => missing,
            Err(error @ Error::Api { .. }) => vec![crate::chain(&error)],
            Err(error) => return Err(error),
        };
        if began.elapsed() >= timeout {
            let missing = missing.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n");
            return Err(Error::Late { goal, seconds: timeout.as_secs(), missing });
        }
        if missing != said {
            for line in missing.iter().filter(|line| !said.contains(line)) {
                say!("  {line}")?;
            }
            said = missing;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
