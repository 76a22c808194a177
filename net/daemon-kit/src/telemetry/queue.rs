//! The queue between whoever logs and whoever reads the log: lines wait for a slow reader in bounded number,
//! later ones are dropped and counted, and nobody who logs ever waits.

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
/// How long a written batch lets the next one gather. Without it, whoever logs pays a wake-up across CPUs for
/// each line: with a line for each connection, a tenth of a daemon's time (seen with `perf` while connections
/// came and went).
const GATHER: Duration = Duration::from_millis(5);
/// Between attempts to get a word into a full queue.
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
                // Without a reader there is nowhere to complain.
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
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn what_was_queued_is_written_by_the_end() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let (mut queue, flush) = start(writer).expect("a thread");
        for number in 0..100 {
            writeln!(queue, "line").expect("never fails");
            assert_eq!(queue.dropped(), 0, "{number}");
        }
        drop(flush);
        let lines = BufReader::new(reader)
            .lines()
            .take(100)
            .filter(|line| line.as_deref().is_ok_and(|l| l == "line"));
        assert_eq!(lines.count(), 100);
    }

    #[test]
    fn a_reader_that_stalls_stops_nobody() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let (mut queue, flush) = start(writer).expect("a thread");
        let line = [b"x".repeat(99), b"\n".to_vec()].concat();
        let written = 3 * QUEUED_LINES;
        let before = Instant::now();
        for _ in 0..written {
            queue.write_all(&line).expect("never fails");
        }
        assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
        let dropped = queue.dropped();
        assert!(dropped > 0, "no queue holds them all");
        // A thread that was about to write may have taken some off.
        assert!(queue.waiting() >= 4096, "{} wait", queue.waiting());
        let before = Instant::now();
        drop(flush);
        let waited = before.elapsed();
        assert!((FLUSH_DEADLINE..10 * FLUSH_DEADLINE).contains(&waited), "{waited:?}");
        // Once it is read again, what was not dropped is there, in whole lines.
        let kept = written - usize::try_from(dropped).expect("a count");
        let lines = BufReader::new(reader)
            .lines()
            .take(kept)
            .filter(|read| read.as_ref().is_ok_and(|l| l.len() == 99));
        assert_eq!(lines.count(), kept);
    }

    #[test]
    fn a_reader_that_left_stops_nobody() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let (mut queue, flush) = start(writer).expect("a thread");
        for _ in 0..100 {
            writeln!(queue, "line").expect("never fails");
        }
        drop(flush);
    }
}
