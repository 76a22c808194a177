//! When to check the plugin's installation: a thread that wakes up when a watched folder changes, when there
//! is a new credential, and periodically, in case a notification is lost.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use ambit_daemon_kit::admin::Condition;
use ambit_kube::error::chain;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::installer::Installation;
use super::telemetry;

/// Between two checks without a notification: a folder that was removed and made again tells nothing.
const RESCAN: Duration = Duration::from_secs(1);
/// Notifications come in bursts; the rest of one is waited for.
const BURST: Duration = Duration::from_millis(20);

/// What wakes the thread.
enum Wake {
    Changed,
    Credential(String),
    Stop(Sender<()>),
}

/// A handle to the thread; clones share it.
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

    /// Installs a new credential.
    pub(crate) fn credential(&self, text: String) {
        // A stopped thread installs nothing.
        _ = self.0.send(Wake::Credential(text));
    }

    /// Ends the thread; returns when it will write nothing more.
    pub(crate) fn stop(&self) {
        let (done, ended) = channel();
        if self.0.send(Wake::Stop(done)).is_ok() {
            // An error means that the thread has ended.
            _ = ended.recv();
        }
    }
}

fn run(mut installation: Installation, condition: &Condition, waker: &Sender<Wake>, wakes: &Receiver<Wake>) {
    let mut watchers: Option<Vec<RecommendedWatcher>> = None;
    let mut last_error = String::new();
    loop {
        if watchers.is_none() {
            watchers = listen(&installation, waker);
        }
        pass(&installation, condition, &mut last_error);
        match wakes.recv_timeout(RESCAN) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(wake) => {
                thread::sleep(BURST);
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

/// `last_error`: why the last check failed; the same error is logged once in a row.
fn pass(installation: &Installation, condition: &Condition, last_error: &mut String) {
    match installation.pass() {
        Ok(written) => {
            for part in written {
                telemetry::REPAIRS.count([part]);
                tracing::info!(part, "CNI plugin installation written");
            }
            condition.met();
            last_error.clear();
        }
        Err(error) => {
            telemetry::INSTALL_ERRORS.count();
            let error = chain(&error);
            if *last_error != error {
                tracing::warn!(error, "failed to install the CNI plugin");
                last_error.clone_from(&error);
            }
            condition.unmet(error);
        }
    }
}

fn listen(installation: &Installation, waker: &Sender<Wake>) -> Option<Vec<RecommendedWatcher>> {
    let layout = &installation.layout;
    let watch = |folder: &std::path::Path| {
        let waker = waker.clone();
        let notified = move |event: notify::Result<Event>| {
            // This process reads the files itself.
            if !matches!(event, Ok(Event { kind: EventKind::Access(_), .. })) {
                // The receiver is gone when the thread has ended.
                _ = waker.send(Wake::Changed);
            }
        };
        let mut watcher = notify::recommended_watcher(notified)?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok::<_, notify::Error>(watcher)
    };
    let watchers: Result<Vec<_>, _> =
        [&layout.conf_dir, &layout.bin_dir].map(|it| watch(it)).into_iter().collect();
    watchers
        .inspect_err(
            |error| tracing::debug!(%error, "failed to watch folders; they are checked periodically"),
        )
        .ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use ambit_daemon_kit::admin::Readiness;

    use super::super::installer::tests::Host;
    use super::*;

    /// Another tool may make the folder anew: the watched one is gone then, without a further notification.
    #[test]
    fn entry_returns_to_a_folder_that_was_made_anew() {
        let host = Host::new(&[]);
        let folder = host.installation.layout.conf_dir.clone();
        let installer =
            Installer::start(host.installation.clone(), Readiness::default().condition("cni")).unwrap();
        // The folder as the thread knows it first has no configuration.
        for round in 0..2 {
            fs::remove_dir_all(&folder).unwrap();
            fs::create_dir(&folder).unwrap();
            // The first look at the new folder finds nothing that could be watched.
            thread::sleep(RESCAN + BURST);
            host.write("10-lab.conflist", "{\"name\": \"lab\", \"plugins\": [{\"type\": \"bridge\"}]}");
            let since = Instant::now();
            while !host.has_entry("10-lab.conflist") {
                assert!(since.elapsed() < Duration::from_secs(8), "round {round}: not written");
                thread::sleep(Duration::from_millis(10));
            }
        }
        installer.stop();
    }
}
