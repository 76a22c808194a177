//! How a daemon ends: stop accepting, wait for what is running, and after a deadline cut it ([`Drain`]).
//!
//! One [`Drain`] is cloned into everything. Accept loops end at [`Drain::started`]; whatever must be waited
//! for has a [`Hold`] (or is spawned with [`Drain::spawn`]); holders that outlive the deadline end at
//! [`Drain::cut`].

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::Error;

/// How long holders have to end by themselves once they were cut.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// A handle on the daemon's end. Clones are the same drain.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    started: CancellationToken,
    cut: CancellationToken,
    holders: TaskTracker,
}

/// Something the drain waits for while it lives.
#[derive(Debug)]
#[must_use = "the drain waits only while this lives"]
pub struct Hold(#[expect(dead_code, reason = "counts by existing")] TaskTrackerToken);

impl Drain {
    /// A drain that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the drain. Again is harmless.
    pub fn start(&self) {
        self.started.cancel();
    }

    /// Resolves when the drain begins: take no new work.
    pub fn started(&self) -> WaitForCancellationFuture<'_> {
        self.started.cancelled()
    }

    /// Whether the drain has begun.
    pub fn is_started(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Resolves when the deadline has passed: end now, whatever is under way.
    pub fn cut(&self) -> WaitForCancellationFuture<'_> {
        self.cut.cancelled()
    }

    /// Makes the drain wait until the value is dropped.
    pub fn hold(&self) -> Hold {
        Hold(self.holders.token())
    }

    /// Spawns a task that the drain waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.holders.spawn(task)
    }

    /// How many holders there are.
    pub fn holders(&self) -> usize {
        self.holders.len()
    }

    /// Begins the drain if it has not begun and waits for the holders. Those left at the deadline are asked
    /// to end; the error says how many there were.
    pub async fn finish(&self, deadline: Duration) -> Result<(), Error> {
        self.start();
        self.holders.close();
        if tokio::time::timeout(deadline, self.holders.wait()).await.is_ok() {
            return Ok(());
        }
        let holders = self.holders.len();
        self.cut.cancel();
        // Being cut still takes a moment: resets are sent and the last records written.
        let _ended_or_not = tokio::time::timeout(CUT_GRACE, self.holders.wait()).await;
        Err(Error::DrainDeadline { holders, deadline })
    }
}

#[cfg(test)]
mod tests;
