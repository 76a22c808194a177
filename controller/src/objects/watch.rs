//! When to look: a loop on a thread of its own. Notifications only hurry it; it also looks by itself from
//! time to time, so that one that is lost costs seconds.
//!
//! Way in: [`watch`].

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::reconcile::{AGAIN, Reconciler};

/// Between two looks when nothing was heard.
const RESCAN: Duration = Duration::from_secs(10);
/// The same, where the system does not notify.
const RESCAN_UNNOTIFIED: Duration = Duration::from_secs(1);
/// Notifications come in swarms; the rest of one is waited for.
const SWARM: Duration = Duration::from_millis(5);

/// What wakes the loop.
#[derive(Debug)]
enum Wake {
    Changed,
    Stop,
}

/// Ends the loop.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Sender<Wake>);

impl Stop {
    pub(crate) fn stop(&self) {
        // Otherwise it has ended already.
        _ = self.0.send(Wake::Stop);
    }
}

/// The loop to run on a thread of its own, and what ends it.
pub(crate) fn watch(reconciler: Reconciler) -> (impl FnOnce() + Send + 'static, Stop) {
    let (sender, wakes) = channel();
    let stop = Stop(sender.clone());
    (move || run(reconciler, &sender, &wakes), stop)
}

fn run(mut reconciler: Reconciler, waker: &Sender<Wake>, wakes: &Receiver<Wake>) {
    let mut watcher = None;
    let mut watched = None;
    loop {
        let pass = reconciler.pass();
        // Another folder has taken its place, or it is back: a watch follows the folder, not its name.
        if pass.folder != watched {
            watched = pass.folder;
            watcher = watched.and_then(|_| listen(reconciler.root(), waker));
            // Look again: something may have happened before the watch was there.
            continue;
        }
        let rest = match (pass.again, &watcher) {
            (true, _) => AGAIN,
            (false, Some(_)) => RESCAN,
            (false, None) => RESCAN_UNNOTIFIED,
        };
        match wakes.recv_timeout(rest) {
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Wake::Changed) => {
                thread::sleep(SWARM);
                if wakes.try_iter().any(|wake| matches!(wake, Wake::Stop)) {
                    return;
                }
            }
        }
    }
}

fn listen(folder: &Path, waker: &Sender<Wake>) -> Option<RecommendedWatcher> {
    let waker = waker.clone();
    let heard = move |event: notify::Result<Event>| {
        // Reading is what this process does itself.
        if !matches!(event, Ok(Event { kind: EventKind::Access(_), .. })) {
            // Nobody listens any more once the loop has ended.
            _ = waker.send(Wake::Changed);
        }
    };
    let watcher = notify::recommended_watcher(heard).and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    let seconds = RESCAN_UNNOTIFIED.as_secs();
    let report = |error: &notify::Error| {
        tracing::warn!(folder = %folder.display(), %error, "not watched, only looked at every {seconds} s");
    };
    watcher.inspect_err(report).ok()
}
