//! The log of programs that were built with logging (`cargo xtask ebpf --log`), forwarded to `tracing`.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use ambit_abi::{KernelReason, NetnsCookie, names};
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Error;
use crate::object::Object;
use crate::pins::Pins;

/// How long the reader waits before it looks whether it must stop, in milliseconds.
const WAIT: u16 = 100;

/// Reads the log until it is dropped. While one daemon takes over from another, each reads a part.
pub(crate) struct LogReader {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl LogReader {
    /// Starts to read the programs' log; none if they do not log.
    pub(crate) fn start(object: &Object, pins: &Pins) -> Result<Option<Self>, Error> {
        if !object.logs() {
            // A build that logged may have been here before.
            pins.unpin(names::LOG)?;
            return Ok(None);
        }
        let mut loaded = object.load(pins, NetnsCookie(0))?;
        let mut logger = EbpfLogger::init_with_logger(&mut loaded, Forward)
            .map_err(|error| Error::Log(Box::new(error)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let read = move || {
            while !stopped.load(Ordering::Relaxed) {
                // An interrupted wait is as good as one that ended.
                let _ = poll(
                    &mut [PollFd::new(std::os::fd::AsFd::as_fd(&logger), PollFlags::POLLIN)],
                    PollTimeout::from(WAIT),
                );
                logger.flush();
            }
        };
        let thread = std::thread::Builder::new()
            .name("ebpf-log".to_owned())
            .spawn(read)
            .map_err(|error| Error::Log(Box::new(error)))?;
        Ok(Some(Self { stop, thread: Some(thread) }))
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("reader of the eBPF programs' log panicked");
        }
    }
}

impl fmt::Debug for LogReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogReader").finish_non_exhaustive()
    }
}

/// Passes the programs' messages to `tracing`.
struct Forward;

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = record.args().to_string();
        tracing::debug!(target: "ambit_ebpf", "{}", readable(&message));
    }

    fn flush(&self) {}
}

/// The message with its reason's name in place of the number, and IPv4 addresses without their v4-mapped
/// prefix.
fn readable(message: &str) -> Cow<'_, str> {
    let message: Cow<'_, str> =
        if message.contains(MAPPED) { message.replace(MAPPED, "").into() } else { message.into() };
    let Some((head, number)) = message.rsplit_once(" reason=") else { return message };
    let Some(reason) = number.parse().ok().and_then(KernelReason::from_number) else { return message };
    format!("{head} reason={}", snake_case(&format!("{reason:?}"))).into()
}

/// The name of a variant as metrics and logs write it.
fn snake_case(variant: &str) -> String {
    let mut name = String::new();
    for (index, letter) in variant.char_indices() {
        if letter.is_ascii_uppercase() && index > 0 {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

/// The text of the prefix of v4-mapped addresses.
const MAPPED: &str = "::ffff:";

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn addresses_and_reasons_are_readable() {
        let rows = [
            (
                "connect: refused netns=7 address=::ffff:10.0.0.1 port=80 reason=1",
                "connect: refused netns=7 address=10.0.0.1 port=80 reason=handoffs_exhausted",
            ),
            (
                "inbound: passed: probe netns=7 address=fd00::1 port=80",
                "inbound: passed: probe netns=7 address=fd00::1 port=80",
            ),
            ("unknown reason=4000", "unknown reason=4000"),
        ];
        for (message, expected) in rows {
            assert_eq!(readable(message), expected);
        }
    }
}
