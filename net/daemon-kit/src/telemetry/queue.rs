//! The queue between the threads that log and the reader of the log ([`Queue`]): lines wait for a slow reader
//! in bounded number, later ones are dropped and counted, and logging never waits.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that wait before new ones are dropped.
const QUEUED_LINES: usize = 8192;
/// How long the end of the process waits for lines to be read.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);
/// Pause after a batch, so that lines coalesce. Without it, a thread that logs pays a wake-up across
/// CPUs for each line: with a line for each connection, a tenth of a daemon's time (seen with `perf` while
/// connections came and went).
const GATHER: Duration = Duration::from_millis(5);
/// Between attempts to put a message into a full queue.
const FLUSH_PAUSE: Duration = Duration::from_millis(5);

enum Message {
    Line(Vec<u8>),
    /// Answered when all before it is written.
    Flush(Sender<()>),
}

/// Takes lines; each `write` is one. Clones are the same queue.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    sender: SyncSender<Message>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    queued: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
}

/// Waits, within a second, until what is queued is written. Made when logs start; dropped at the end of
/// `main`.
#[derive(Debug)]
#[must_use = "the last lines are lost unless this is dropped at the end of main"]
pub struct Flush(SyncSender<Message>);

/// A queue that is written to `writer` by a thread of its own.
pub(super) fn start(writer: impl Write + Send + 'static) -> io::Result<(Queue, Flush)> {
    let (sender, receiver) = sync_channel(QUEUED_LINES);
    let counts = Arc::new(Counts::default());
    let written = counts.clone();
    thread::Builder::new().name("logs".to_owned()).spawn(move || write_out(&receiver, &written, writer))?;
    let flush = Flush(sender.clone());
    Ok((Queue { sender, counts }, flush))
}

/// Writes lines as they come; many that wait together go out together.
fn write_out(queue: &Receiver<Message>, counts: &Counts, writer: impl Write) {
    let mut writer = io::BufWriter::new(writer);
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                // Without a reader an error cannot be reported.
                Message::Line(line) => {
                    drop(writer.write_all(&line));
                    counts.written.fetch_add(1, Ordering::Relaxed);
                }
                Message::Flush(done) => {
                    let _ = writer.flush();
                    let _ = done.send(());
                }
            }
            next = queue.try_recv().ok();
        }
        let _ = writer.flush();
        thread::sleep(GATHER);
    }
}

impl Queue {
    /// How many lines were dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    /// How many lines wait now.
    pub(super) fn waiting(&self) -> u64 {
        let written = self.counts.written.load(Ordering::Relaxed);
        self.counts.queued.load(Ordering::Relaxed).saturating_sub(written)
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let count = match self.sender.try_send(Message::Line(line.to_vec())) {
            Ok(()) => &self.counts.queued,
            Err(_) => &self.counts.dropped,
        };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_DEADLINE;
        let (done, written) = channel();
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(back)) = self.0.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            thread::sleep(FLUSH_PAUSE);
            message = back;
        }
        let _written_or_late = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests;
