//! When to look at the plugin's installation: a thread that is woken by what others write, by a new
//! credential, and from time to time, so that a notification that is lost costs seconds.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use ambit_daemon_kit::admin::Condition;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::installer::Installation;
use super::telemetry;
use crate::chain;

/// Between two looks when nothing was heard.
const RESCAN: Duration = Duration::from_secs(10);
/// The same, while something is waited for or cannot be watched.
const RESCAN_SOON: Duration = Duration::from_secs(1);
/// Notifications come in swarms; the rest of one is waited for.
const SWARM: Duration = Duration::from_millis(20);

enum Wake {
    Changed,
    Credential(String),
    Stop(Sender<()>),
}

/// A handle on the thread. Clones are the same.
#[derive(Clone)]
pub(crate) struct Installer(Sender<Wake>);

impl Installer {
    /// Starts it.
    pub(crate) fn start(installation: Installation, condition: Condition) -> std::io::Result<Self> {
        let (sender, wakes) = channel();
        let waker = sender.clone();
        thread::Builder::new()
            .name("installer".to_owned())
            .spawn(move || run(installation, &condition, &waker, &wakes))?;
        Ok(Self(sender))
    }

    /// There is a new credential.
    pub(crate) fn credential(&self, text: String) {
        // Ended already: then nobody is to have it.
        _ = self.0.send(Wake::Credential(text));
    }

    /// Returns when nothing will be written any more.
    pub(crate) fn stop(&self) {
        let (done, ended) = channel();
        if self.0.send(Wake::Stop(done)).is_ok() {
            // Dropped with the thread, whether it answers or not.
            _ = ended.recv();
        }
    }
}

fn run(mut installation: Installation, condition: &Condition, waker: &Sender<Wake>, wakes: &Receiver<Wake>) {
    let mut watchers: Option<Vec<RecommendedWatcher>> = None;
    let mut said = String::new();
    loop {
        if watchers.is_none() {
            watchers = listen(&installation, waker);
        }
        let installed = pass(&installation, condition, &mut said);
        let rest = if installed && watchers.is_some() { RESCAN } else { RESCAN_SOON };
        match wakes.recv_timeout(rest) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(wake) => {
                thread::sleep(SWARM);
                for wake in std::iter::once(wake).chain(wakes.try_iter()) {
                    match wake {
                        Wake::Changed => {}
                        Wake::Credential(text) => installation.credential = Some(text),
                        Wake::Stop(_done) => return,
                    }
                }
            }
        }
    }
}

/// `said`: why it failed the last time; the same is not said twice in a row.
fn pass(installation: &Installation, condition: &Condition, said: &mut String) -> bool {
    match installation.pass() {
        Ok(mended) => {
            for part in mended {
                telemetry::REPAIRS.count([part]);
                tracing::info!(part, "the CNI plugin's installation was written");
            }
            condition.met();
            said.clear();
            true
        }
        Err(error) => {
            telemetry::INSTALL_ERRORS.count();
            let error = chain(&error);
            if *said != error {
                tracing::warn!(error, "the CNI plugin is not installed yet");
                said.clone_from(&error);
            }
            condition.unmet(error);
            false
        }
    }
}

fn listen(installation: &Installation, waker: &Sender<Wake>) -> Option<Vec<RecommendedWatcher>> {
    let layout = &installation.layout;
    let watch = |folder: &std::path::Path| {
        let waker = waker.clone();
        let heard = move |event: notify::Result<Event>| {
            // Reading is what this process does itself.
            if !matches!(event, Ok(Event { kind: EventKind::Access(_), .. })) {
                // Nobody listens any more once the thread has ended.
                _ = waker.send(Wake::Changed);
            }
        };
        let mut watcher = notify::recommended_watcher(heard)?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok::<_, notify::Error>(watcher)
    };
    let watchers: Result<Vec<_>, _> =
        [&layout.conf_dir, &layout.bin_dir].map(|it| watch(it)).into_iter().collect();
    watchers.inspect_err(|error| tracing::debug!(%error, "folders are only looked at")).ok()
}
