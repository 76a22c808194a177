//! Bounds how many clients are about to prove who they are: [`Handshakes`].
//!
//! An honest handshake takes milliseconds. When there are too many, the oldest is the least likely to be honest, so it
//! goes: whoever holds thousands open keeps nobody else out.

use std::collections::BTreeMap;
use std::future::Future;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::Error;

#[derive(Debug)]
pub(super) struct Handshakes {
    most: usize,
    running: Mutex<Running>,
}

/// By age: dropping a sender ends the handshake.
#[derive(Debug, Default)]
struct Running {
    next: u64,
    handshakes: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Handshakes {
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), running: Mutex::default() }
    }

    /// Runs a handshake, which fails if it is the oldest when there is one too many.
    pub(super) async fn run<T>(&self, handshake: impl Future<Output = T>) -> Result<T, Error> {
        let (place, cut) = self.enter();
        tokio::select! {
            biased;
            done = handshake => { drop(place); Ok(done) }
            _ = cut => Err(Error::TooManyHandshakes),
        }
    }

    fn enter(&self) -> (Place<'_>, oneshot::Receiver<()>) {
        let (sender, cut) = oneshot::channel();
        let mut running = self.running.lock();
        if running.handshakes.len() >= self.most {
            running.handshakes.pop_first();
        }
        let number = running.next;
        running.next += 1;
        running.handshakes.insert(number, sender);
        (Place { handshakes: self, number }, cut)
    }
}

/// Frees the place when the handshake is over, however it ended.
struct Place<'a> {
    handshakes: &'a Handshakes,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.handshakes.running.lock().handshakes.remove(&self.number);
    }
}
