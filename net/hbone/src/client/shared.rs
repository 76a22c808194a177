//! What the tunnels of one connection share: how many there are, and whether it takes more ([`Shared`],
//! [`Slot`]).

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::SendRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::http2::Http2;
use crate::memory::Inflow;

/// A connection's state. The driver's task, the connection's clones and its tunnels hold it.
pub(super) struct Shared {
    state: Mutex<State>,
    /// How many tunnels the connection may carry.
    streams: usize,
    /// How many bytes of one tunnel may wait to be written.
    pub(super) send_buffer: usize,
    /// What its tunnels hold.
    pub(super) inflow: Arc<Inflow>,
}

struct State {
    /// `None`: closed to new tunnels. The driver ends when the last sender is dropped.
    sender: Option<SendRequest<Bytes>>,
    tunnels: usize,
    idle_since: Instant,
    on_close: Option<Box<dyn FnOnce() + Send>>,
}

/// A place for one tunnel on a connection, given back when dropped.
pub(crate) struct Slot(pub(super) Arc<Shared>);

impl Shared {
    pub(super) fn new(sender: SendRequest<Bytes>, http2: &Http2, inflow: Arc<Inflow>) -> Self {
        let state = State { sender: Some(sender), tunnels: 0, idle_since: Instant::now(), on_close: None };
        Self {
            state: Mutex::new(state),
            streams: http2.streams as usize,
            send_buffer: http2.send_buffer,
            inflow,
        }
    }

    /// A sender for one request: a sender remembers whether its last request still waits for its turn.
    pub(super) fn sender(&self) -> Option<SendRequest<Bytes>> {
        self.state.lock().sender.clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().sender.is_none()
    }

    pub(super) fn tunnels(&self) -> usize {
        self.state.lock().tunnels
    }

    /// A place for one more tunnel, unless the connection is full, closed, or the peer has sent GOAWAY.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Slot> {
        let state = &mut *self.state.lock();
        let sender = state.sender.as_mut()?;
        // Asks whether the connection has failed or was sent GOAWAY; it is never pending for a sender without
        // requests.
        if let Poll::Ready(Err(_failed)) = sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            return None;
        }
        let most = sender.current_max_send_streams().min(self.streams);
        if state.tunnels >= most {
            return None;
        }
        state.tunnels += 1;
        Some(Slot(self.clone()))
    }

    /// Calls back once when the connection takes no new tunnels any more: at once if that is so already.
    pub(super) fn on_close(&self, call: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        if state.sender.is_some() {
            state.on_close = Some(Box::new(call));
        } else {
            drop(state);
            call();
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        let sender = state.sender.take();
        let on_close = state.on_close.take();
        drop(state);
        // Dropping the last sender wakes the driver, which has locks of its own.
        drop(sender);
        if let Some(call) = on_close {
            call();
        }
    }

    /// Closes if idle for long enough; else when to ask again, or `None` if closed.
    pub(super) fn close_if_idle(&self, http2: &Http2) -> Option<Instant> {
        let state = self.state.lock();
        state.sender.as_ref()?;
        let now = Instant::now();
        if state.tunnels > 0 {
            return Some(now + http2.idle_timeout);
        }
        let due = state.idle_since + http2.idle_timeout;
        if due > now {
            return Some(due);
        }
        drop(state);
        self.close();
        None
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.tunnels -= 1;
        if state.tunnels == 0 {
            state.idle_since = Instant::now();
        }
    }
}
