//! SIGTERM and SIGINT begin the drain; a second one ends the process at once ([`Shutdown`]).

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::drain::Drain;
use crate::error::Error;

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

    /// Waits for the next signal and returns its name.
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
            tracing::warn!(signal = again, "second signal; exiting without drain");
            std::process::exit(if again == "SIGINT" { 130 } else { 143 });
        });
        name
    }
}

#[cfg(test)]
mod tests;
