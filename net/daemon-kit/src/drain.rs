//! How a daemon ends: stop accepting, wait for what is running, and after a deadline cut it.
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

use crate::Error;

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

    /// Begins the drain if it has not begun and waits for the holders. Those left at the deadline are told to
    /// end; the error says how many there were.
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
mod tests {
    use tokio::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    #[tokio::test(start_paused = true)]
    async fn without_holders_it_ends_at_once() {
        let drain = Drain::new();
        let before = Instant::now();
        drain.finish(LONG).await.expect("nothing holds it");
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert!(drain.is_started());
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_holders_and_no_longer() {
        let drain = Drain::new();
        let hold = drain.hold();
        let clone = drain.clone();
        drain.spawn(async move {
            clone.started().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        assert_eq!(drain.holders(), 2);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(hold);
        });
        let before = Instant::now();
        drain.finish(LONG).await.expect("all end in time");
        assert_eq!(before.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn starting_does_not_cut_and_the_deadline_does() {
        let drain = Drain::new();
        let holder = drain.clone();
        let cut = drain.spawn(async move {
            holder.cut().await;
            Instant::now()
        });
        let before = Instant::now();
        let error = drain.finish(Duration::from_secs(10)).await.expect_err("one does not end by itself");
        assert!(matches!(error, Error::DrainDeadline { holders: 1, .. }), "{error}");
        assert_eq!(error.to_string(), "1 tasks still run after 10 s of draining");
        assert_eq!(cut.await.expect("no panic") - before, Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_ignores_the_cut_does_not_hold_the_daemon() {
        let drain = Drain::new();
        let _for_ever = drain.hold();
        let before = Instant::now();
        drain.finish(Duration::from_secs(10)).await.expect_err("it never ends");
        assert_eq!(before.elapsed(), Duration::from_secs(10) + CUT_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_begins_while_draining_is_waited_for_too() {
        let drain = Drain::new();
        let first = drain.clone();
        drain.spawn(async move {
            first.started().await;
            let second = first.clone();
            first.spawn(async move {
                tokio::time::sleep(Duration::from_secs(7)).await;
                drop(second);
            });
        });
        let before = Instant::now();
        drain.finish(LONG).await.expect("both end");
        assert_eq!(before.elapsed(), Duration::from_secs(7));
    }
}
