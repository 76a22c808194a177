//! HTTP/1 connections that wait for a request: [`Idle`].

use std::time::Duration;

use hyper::client::conn::http1;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::body::RequestBody;

/// How many of them wait.
const MOST: usize = 128;
/// How long they wait: less than servers usually do, or a request meets a connection that is being closed.
pub(super) const TIME: Duration = Duration::from_secs(45);

/// Those to one endpoint, for one client.
#[derive(Debug, Default)]
pub(super) struct Idle(Mutex<Vec<Waiting>>);

#[derive(Debug)]
struct Waiting {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

impl Idle {
    /// Keeps a connection whose request has been answered.
    pub(super) fn keep(&self, sender: http1::SendRequest<RequestBody>) {
        let mut waiting = self.0.lock();
        if !sender.is_closed() && waiting.len() < MOST {
            waiting.push(Waiting { sender, since: Instant::now() });
        }
    }

    /// The one that was used last, so that others grow old and are closed.
    pub(super) fn take(&self) -> Option<http1::SendRequest<RequestBody>> {
        let mut waiting = self.0.lock();
        while let Some(Waiting { sender, since }) = waiting.pop() {
            if sender.is_ready() && since.elapsed() < TIME {
                return Some(sender);
            }
        }
        None
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().len()
    }

    pub(super) fn close_unused(&self) {
        self.0.lock().retain(|it| !it.sender.is_closed() && it.since.elapsed() < TIME);
    }
}
