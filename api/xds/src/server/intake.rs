//! The memory of large requests. A client that reconnects says which versions it holds: some megabytes in a
//! large mesh, and after a restart of the controller all clients do at once. So only a few streams at a time,
//! one of each node, have a turn to send more than [`FREE`] bytes; those of the others wait in HTTP/2's
//! windows, which are small.
//!
//! [`Turns`] are of the server, an [`Intake`] of one stream, whose [`Metered`] body takes the turn. The
//! stream gives it back when the request has been answered, and loses its connection after [`LIMIT`].

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tonic::Status;

/// Streams that send a large request at the same time. Each may hold [`super::service::MAX_REQUEST`], and
/// some times that when it is decoded.
const TURNS: usize = 4;
/// What a request may have without a turn.
const FREE: usize = 64 << 10;
/// How long a turn lasts: a client that sends or reads slowly must not keep the others waiting.
const LIMIT: Duration = Duration::from_secs(20);

/// The turns of a server.
#[derive(Debug)]
pub(super) struct Turns {
    free: Arc<Semaphore>,
    pub(super) waiting: AtomicU64,
    pub(super) refused: AtomicU64,
}

impl Default for Turns {
    fn default() -> Self {
        let free = Arc::new(Semaphore::new(TURNS));
        Self { free, waiting: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }
}

/// The turn that a node may have.
pub(super) type NodeTurn = Arc<Semaphore>;

/// A node's turn.
pub(super) fn of_node() -> NodeTurn {
    Arc::new(Semaphore::new(1))
}

/// Held while a large request is received and answered.
#[derive(Debug)]
struct Turn {
    _of_all: OwnedSemaphorePermit,
    _of_node: OwnedSemaphorePermit,
}

/// What one stream has sent and not been answered.
#[derive(Debug)]
pub(super) struct Intake {
    turns: Arc<Turns>,
    node: NodeTurn,
    received: AtomicUsize,
    turn: Mutex<Option<Turn>>,
    /// When the turn began.
    since: watch::Sender<Option<Instant>>,
}

impl Intake {
    pub(super) fn new(turns: Arc<Turns>, node: NodeTurn) -> Arc<Self> {
        let (received, turn, since) = (AtomicUsize::new(0), Mutex::new(None), watch::Sender::new(None));
        Arc::new(Self { turns, node, received, turn, since })
    }

    /// Its requests have been answered: the next begins at zero.
    pub(super) fn answered(&self) {
        self.received.store(0, Ordering::Relaxed);
        if self.turn.lock().take().is_some() {
            self.since.send_replace(None);
        }
    }

    /// Resolves when the turn has lasted too long; the time before `answering` does not count.
    pub(super) async fn overdue(&self, answering: Instant) {
        let mut since = self.since.subscribe();
        loop {
            let began = *since.borrow_and_update();
            let rest = async {
                match began {
                    Some(began) => tokio::time::sleep_until(began.max(answering) + LIMIT).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = rest => return,
                _ = since.changed() => {}
            }
        }
    }

    /// Counts a stream that is ended because its turn is over, and says why.
    pub(super) fn too_slow(&self) -> Status {
        self.turns.refused.fetch_add(1, Ordering::Relaxed);
        let seconds = LIMIT.as_secs();
        Status::resource_exhausted(format!(
            "a large request took more than {seconds} s to send and to answer"
        ))
    }

    /// Waits for a turn: first the node's, so that one node's streams wait for each other only.
    async fn take_turn(self: Arc<Self>) {
        let _waiting = Waiting::new(&self.turns);
        // The semaphores are never closed.
        let Ok(of_node) = self.node.clone().acquire_owned().await else { return };
        let Ok(of_all) = self.turns.free.clone().acquire_owned().await else { return };
        *self.turn.lock() = Some(Turn { _of_all: of_all, _of_node: of_node });
        self.since.send_replace(Some(Instant::now()));
    }

    /// Whether these bytes need a turn that the stream does not have.
    fn needs_turn(&self, bytes: usize) -> bool {
        let received = self.received.fetch_add(bytes, Ordering::Relaxed) + bytes;
        received > FREE && self.turn.lock().is_none()
    }
}

/// Counts a stream that waits.
struct Waiting(Arc<Turns>);

impl Waiting {
    fn new(turns: &Arc<Turns>) -> Self {
        turns.waiting.fetch_add(1, Ordering::Relaxed);
        Self(turns.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of a stream's requests.
pub(super) struct Metered {
    body: tonic::body::Body,
    intake: Arc<Intake>,
    /// What waits for its turn.
    held_back: Option<(Frame<Bytes>, Wait)>,
}

/// Ends when it is a stream's turn.
type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Metered {
    pub(super) fn new(body: tonic::body::Body, intake: Arc<Intake>) -> Self {
        Self { body, intake, held_back: None }
    }
}

impl Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.held_back.is_none() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            if !self.intake.needs_turn(bytes) {
                return Poll::Ready(Some(Ok(frame)));
            }
            let turn = Box::pin(self.intake.clone().take_turn());
            self.held_back = Some((frame, turn));
        }
        if let Some((_, turn)) = &mut self.held_back {
            ready!(turn.as_mut().poll(cx));
        }
        Poll::Ready(self.held_back.take().map(|(frame, _)| Ok(frame)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intake(turns: &Arc<Turns>, node: &NodeTurn) -> Arc<Intake> {
        Intake::new(turns.clone(), node.clone())
    }

    fn waiting(turns: &Arc<Turns>) -> u64 {
        turns.waiting.load(Ordering::Relaxed)
    }

    /// Polls until nothing moves any more.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn streams_wait_for_turns_and_a_node_has_one() {
        let turns = Arc::new(Turns::default());
        let nodes: Vec<NodeTurn> = (0..=TURNS).map(|_| of_node()).collect();
        let first: Vec<_> = nodes.iter().take(TURNS).map(|node| intake(&turns, node)).collect();
        for stream in &first {
            assert!(!stream.needs_turn(FREE) && stream.needs_turn(1), "beyond what is free");
            stream.clone().take_turn().await;
            assert!(!stream.needs_turn(FREE * 100), "it has its turn");
        }
        // Another stream of a node that has its turn takes none from another node.
        let (same, other) = (intake(&turns, &nodes[0]), intake(&turns, &nodes[TURNS]));
        let same_waits = tokio::spawn(same.clone().take_turn());
        settle().await;
        let other_waits = tokio::spawn(other.clone().take_turn());
        settle().await;
        assert_eq!(waiting(&turns), 2);
        first[1].answered();
        other_waits.await.unwrap();
        assert_eq!(waiting(&turns), 1, "the node's own stream has it still");
        first[0].answered();
        same_waits.await.unwrap();
        assert_eq!(waiting(&turns), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_in_time() {
        let turns = Arc::new(Turns::default());
        let stream = intake(&turns, &of_node());
        let patient = Duration::from_hours(1);
        let begin = Instant::now();
        tokio::time::timeout(patient, stream.overdue(begin)).await.unwrap_err();
        stream.clone().take_turn().await;
        let began = Instant::now();
        tokio::time::timeout(patient, stream.overdue(begin)).await.unwrap();
        assert_eq!(began.elapsed(), LIMIT);
        // A server that could not answer until now.
        let ready = Instant::now();
        tokio::time::timeout(patient, stream.overdue(ready)).await.unwrap();
        assert_eq!(ready.elapsed(), LIMIT);
        stream.answered();
        tokio::time::timeout(patient, stream.overdue(begin)).await.unwrap_err();
    }
}
