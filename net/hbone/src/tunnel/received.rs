//! What a tunnel has received and its reader has not yet taken: [`Received`].

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::RecvStream;

use super::backlog::Backlog;
use crate::memory::{Account, Charge, Inflow};

/// The receiving half of a tunnel. The peer is given room for more as the reader consumes.
pub(crate) struct Received {
    receive: RecvStream,
    /// Being read.
    current: Bytes,
    /// To be read after that: fetched while the reader took nothing.
    backlog: Option<Box<Backlog>>,
    /// The peer has ended its direction.
    ended: bool,
    /// For what waits while the reader takes nothing.
    charge: Charge,
}

impl Received {
    pub(crate) fn new(receive: RecvStream, inflow: Arc<Inflow>) -> Self {
        Self { receive, current: Bytes::new(), backlog: None, ended: false, charge: Charge::new(inflow) }
    }

    /// Ready when there is something to read ([`Self::current`]), or the end.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, h2::Error>> {
        if self.current.is_empty() {
            match self.backlog.as_mut().and_then(|backlog| backlog.pop()) {
                Some(bytes) => self.current = bytes,
                None => self.backlog = None,
            }
        }
        while self.current.is_empty() {
            match ready!(self.poll_frame(context))? {
                Some(bytes) => self.current = bytes,
                None => return Poll::Ready(Ok(false)),
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Whose memory it takes.
    pub(crate) fn account(&self) -> &Account {
        self.charge.account()
    }

    /// What can be read now.
    pub(crate) fn current(&self) -> &[u8] {
        &self.current
    }

    /// Takes so many bytes off [`Self::current`]: the peer may send as many more.
    pub(crate) fn consume(&mut self, count: usize) {
        self.current.advance(count);
        if self.current.is_empty() {
            // Also lets go of the memory.
            self.current = Bytes::new();
        }
        self.release(count);
    }

    /// Takes all of [`Self::current`].
    pub(crate) fn take(&mut self) -> Bytes {
        let bytes = std::mem::take(&mut self.current);
        self.release(bytes.len());
        bytes
    }

    /// Fetches what has come while the reader takes nothing: HTTP/2 counts small frames that are not fetched,
    /// and ends the whole connection when there are too many. What may come is bounded by the stream's
    /// window.
    pub(crate) fn gather(&mut self, context: &mut Context<'_>) -> Result<(), h2::Error> {
        while let Poll::Ready(frame) = self.poll_frame(context)? {
            let Some(bytes) = frame else { break };
            self.backlog.get_or_insert_default().push(bytes);
        }
        self.charge.set(self.waiting());
        Ok(())
    }

    /// How many bytes wait for the reader.
    fn waiting(&self) -> usize {
        self.current.len() + self.backlog.as_ref().map_or(0, |backlog| backlog.len())
    }

    fn release(&mut self, count: usize) {
        if self.charge.is_of_any() {
            self.charge.set(self.waiting());
        }
        // Fails only for a stream that is gone, which reading will tell.
        let _gone = self.receive.flow_control().release_capacity(count);
    }

    /// The next piece as it came.
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, h2::Error>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        let frame = ready!(self.receive.poll_data(context)).transpose()?;
        self.ended = frame.is_none();
        Poll::Ready(Ok(frame))
    }
}
