//! When to read the folder: a loop on a thread of its own. It wakes up on notifications, and periodically in
//! case one is lost.
//!
//! Entry point: [`watch`].

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::reconcile::{AGAIN, Reconciler};

/// Between two passes without a notification.
const RESCAN: Duration = Duration::from_secs(10);
/// The same, if the folder cannot be watched.
const RESCAN_UNNOTIFIED: Duration = Duration::from_secs(1);
/// Notifications come in bursts; the rest of one is waited for.
const BURST: Duration = Duration::from_millis(5);

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
        // An error means that it has ended already.
        _ = self.0.send(Wake::Stop);
    }
}

/// The loop, to be run on a thread of its own, and the handle that ends it.
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
        // The folder was replaced, or is back: a watch follows the inode, not the path.
        if pass.folder != watched {
            watched = pass.folder;
            watcher = watched.and_then(|_| listen(reconciler.root(), waker));
            // Another pass: files may have changed before the watch existed.
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
                thread::sleep(BURST);
                if wakes.try_iter().any(|wake| matches!(wake, Wake::Stop)) {
                    return;
                }
            }
        }
    }
}

fn listen(folder: &Path, waker: &Sender<Wake>) -> Option<RecommendedWatcher> {
    let waker = waker.clone();
    let notified = move |event: notify::Result<Event>| {
        // This process reads the files itself.
        if !matches!(event, Ok(Event { kind: EventKind::Access(_), .. })) {
            // The receiver is gone when the loop has ended.
            _ = waker.send(Wake::Changed);
        }
    };
    let watcher = notify::recommended_watcher(notified).and_then(|mut watcher| {
        watcher.watch(folder, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    let seconds = RESCAN_UNNOTIFIED.as_secs();
    let report = |error: &notify::Error| {
        let folder = folder.display();
        tracing::warn!(%folder, %error, "failed to watch a folder; it is read every {seconds} s");
    };
    watcher.inspect_err(report).ok()
}
