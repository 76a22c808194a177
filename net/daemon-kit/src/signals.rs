//! SIGTERM and SIGINT begin the drain; a second one means now.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Error;
use crate::drain::Drain;

/// The signals that end a daemon, listened to from the moment this exists.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Takes both signals over from their default, which would kill the process.
    pub fn install() -> Result<Self, Error> {
        let take =
            |kind, signal_name| signal(kind).map_err(|source| Error::Signal { signal: signal_name, source });
        Ok(Self {
            terminate: take(SignalKind::terminate(), "SIGTERM")?,
            interrupt: take(SignalKind::interrupt(), "SIGINT")?,
        })
    }

    /// The next one's name.
    pub async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Waits for the first signal, begins the drain, and returns the signal's name. A second signal while
    /// draining ends the process at once, with status 130 (128 + SIGINT) or 143 (128 + SIGTERM).
    pub async fn drain(mut self, drain: &Drain) -> &'static str {
        let name = self.recv().await;
        tracing::info!(signal = name, "draining");
        drain.start();
        tokio::spawn(async move {
            let again = self.recv().await;
            tracing::warn!(signal = again, "second signal: ending without draining");
            std::process::exit(if again == "SIGINT" { 130 } else { 143 });
        });
        name
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Set in the process that is the daemon of the second test.
    const CHILD: &str = "AMBIT_TEST_DRAINS_FOR_EVER";

    fn kill(signal: &str, process: u32) {
        let status = Command::new("/bin/kill").args([signal, &process.to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    #[tokio::test]
    async fn both_signals_are_taken_over_and_begin_the_drain() {
        // One process, so one after the other; the drain's second signal would end it.
        let mut shutdown = Shutdown::install().expect("handlers");
        kill("-INT", std::process::id());
        assert_eq!(shutdown.recv().await, "SIGINT");
        let drain = Drain::new();
        kill("-TERM", std::process::id());
        assert_eq!(shutdown.drain(&drain).await, "SIGTERM");
        assert!(drain.is_started());
    }

    struct Daemon(Child);

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_second_signal_ends_the_process_at_once() {
        if std::env::var_os(CHILD).is_some() {
            return drain_for_ever();
        }
        let child = Command::new(std::env::current_exe().expect("a path"))
            .args(["--exact", "signals::tests::a_second_signal_ends_the_process_at_once", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn();
        let mut daemon = Daemon(child.expect("this test runs again"));
        let output = daemon.0.stdout.take().expect("piped");
        let mut lines = BufReader::new(output).lines().map(|line| line.expect("text"));
        assert!(lines.any(|line| line.contains("taken over")));
        kill("-TERM", daemon.0.id());
        assert!(lines.any(|line| line.contains("draining after SIGTERM")));
        kill("-INT", daemon.0.id());
        assert_eq!(daemon.0.wait().expect("it ends").code(), Some(130));
    }

    fn drain_for_ever() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let shutdown = Shutdown::install().expect("handlers");
            println!("taken over");
            let signal = shutdown.drain(&Drain::new()).await;
            println!("draining after {signal}");
            std::future::pending::<()>().await;
        });
    }
}
