//! How many bytes of tunnels this process holds, and whose they are: [`limit`], [`Account`].
//!
//! Held is what has been received and not yet been taken by its reader. A workload may hold as much as is
//! free: one that takes all it can get has half, two have a third each. The limit is kept by flow control:
//! the windows of a workload's connections are at ease wide, and shrink as its room does, until its peers may
//! send nothing more. So no byte is lost and no tunnel ends; what a workload does not read stops its own
//! tunnels.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

/// Of a process that sets none.
const DEFAULT_LIMIT: usize = 256 << 20;
/// Every HTTP/2 connection begins with this much window (RFC 9113, 6.9.2), and no connection gets less.
const LEAST: usize = 65_535;
/// How much a connection's peer may send beyond what is held: as much as the windows of four tunnels.
const EASE: usize = 4 << 20;
/// All connections of a workload together may be sent this part of its room before it is asked again.
const PART: usize = 4;
/// A reader that has stopped and does not fetch what comes leaves a tunnel's whole window uncounted. So that
/// some of these stop no other tunnel, a connection with many tunnels may have more: this part of the room.
const PART_FOR_TUNNELS: usize = 16;
/// The window of one tunnel, unless [`crate::Http2`] says otherwise.
const TUNNEL: usize = 1 << 20;
/// A change of less than this is not worth a frame.
const STEP: usize = 64 << 10;

static LIMIT: AtomicUsize = AtomicUsize::new(DEFAULT_LIMIT);
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Sets how many bytes all tunnels of the process may hold.
pub fn limit(bytes: usize) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// How many bytes all tunnels of the process may hold, and how many they hold.
pub fn usage() -> (usize, usize) {
    (LIMIT.load(Ordering::Relaxed), HELD.load(Ordering::Relaxed))
}

/// One workload's part. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Account(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    held: AtomicUsize,
    connections: AtomicUsize,
    tunnels: AtomicUsize,
}

/// All of a workload's applications' sockets share this much of the kernel's memory for what the daemon
/// writes to them; the kernel takes up to twice as much.
const SOCKETS: usize = 8 << 20;
/// At most this much for one, and at least that.
const SOCKET_MOST: usize = 512 << 10;
const SOCKET_LEAST: usize = 8 << 10;

/// A relayed tunnel of a workload, until it is dropped.
#[derive(Debug)]
pub(crate) struct Relayed(Account);

impl Relayed {
    /// One more, and the send buffer for its application's socket; none while the kernel's own choice will
    /// do.
    pub(crate) fn new(account: &Account) -> (Self, Option<usize>) {
        let tunnels = account.0.tunnels.fetch_add(1, Ordering::Relaxed) + 1;
        let part = SOCKETS / tunnels;
        let size = (part < SOCKET_MOST).then(|| part.max(SOCKET_LEAST));
        (Self(account.clone()), size)
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        self.0.0.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Account {
    /// How many bytes it holds.
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// How much more it may hold.
    fn room(&self) -> usize {
        let (limit, held) = usage();
        limit.saturating_sub(held).saturating_sub(self.held())
    }

    /// Adds a connection.
    pub(crate) fn connection(&self) -> Arc<Inflow> {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        Arc::new(Inflow {
            account: self.clone(),
            held: AtomicUsize::new(0),
            tunnels: AtomicUsize::new(0),
            window: AtomicU32::new(0),
            driver: Mutex::default(),
        })
    }

    fn change(&self, from: usize, to: usize) {
        for held in [&HELD, &self.0.held] {
            if to >= from {
                held.fetch_add(to - from, Ordering::Relaxed);
            } else {
                held.fetch_sub(from - to, Ordering::Relaxed);
            }
        }
    }
}

/// What one connection holds, and the window that its peer has for it.
#[derive(Debug)]
pub(crate) struct Inflow {
    account: Account,
    held: AtomicUsize,
    tunnels: AtomicUsize,
    /// As it was set last.
    window: AtomicU32,
    /// Of the task that drives the connection.
    driver: Mutex<Option<Waker>>,
}

impl Inflow {
    /// How much of the peer's bytes the connection may hold altogether: what it does hold, and its part of
    /// the workload's room. Where there is no room, what it had before: that is never taken back.
    fn wanted(&self) -> usize {
        let held = self.held.load(Ordering::Relaxed);
        let connections = self.account.0.connections.load(Ordering::Relaxed).max(1);
        let room = self.account.room() / connections;
        let tunnels = self.tunnels.load(Ordering::Relaxed) * TUNNEL;
        let part = (room / PART).min(EASE).max((room / PART_FOR_TUNNELS).min(tunnels));
        let before = self.window.load(Ordering::Relaxed) as usize;
        if part < STEP { before.min(held + EASE).max(LEAST) } else { held + part.max(LEAST) }
    }

    /// The window to set now, if it is another than the last.
    pub(crate) fn window(&self, most: u32) -> Option<u32> {
        let wanted = u32::try_from(self.wanted()).unwrap_or(most).min(most);
        let last = self.window.load(Ordering::Relaxed);
        let changed = wanted.abs_diff(last) as usize >= STEP;
        changed.then(|| {
            self.window.store(wanted, Ordering::Relaxed);
            wanted
        })
    }

    /// The driver's task asks for the window whenever it runs; this has it run.
    pub(crate) fn watch(&self, driver: &Waker) {
        let mut held = self.driver.lock();
        if !held.as_ref().is_some_and(|held| held.will_wake(driver)) {
            *held = Some(driver.clone());
        }
    }

    fn change(&self, from: usize, to: usize) {
        self.account.change(from, to);
        let before = if to >= from {
            self.held.fetch_add(to - from, Ordering::Relaxed)
        } else {
            self.held.fetch_sub(from - to, Ordering::Relaxed)
        };
        // Only where another window may follow from it.
        if before / STEP != (before + to).saturating_sub(from) / STEP
            && let Some(driver) = &*self.driver.lock()
        {
            driver.wake_by_ref();
        }
    }
}

impl Drop for Inflow {
    fn drop(&mut self) {
        self.account.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one tunnel holds; nothing when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    inflow: Arc<Inflow>,
    bytes: usize,
}

impl Charge {
    pub(crate) fn new(inflow: Arc<Inflow>) -> Self {
        inflow.tunnels.fetch_add(1, Ordering::Relaxed);
        Self { inflow, bytes: 0 }
    }

    /// Whose it is.
    pub(crate) fn account(&self) -> &Account {
        &self.inflow.account
    }

    /// Whether it holds anything.
    pub(crate) fn is_of_any(&self) -> bool {
        self.bytes > 0
    }

    /// It holds so many bytes now.
    pub(crate) fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            self.inflow.change(std::mem::replace(&mut self.bytes, bytes), bytes);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
        self.inflow.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes that were read for a plain connection and not yet written: counted for the process alone.
#[derive(Debug, Default)]
pub(crate) struct Pending(usize);

impl Pending {
    /// So many are pending now.
    pub(crate) fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.0, bytes);
        if bytes >= before {
            HELD.fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            HELD.fetch_sub(before - bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// How much to read at a time for a connection whose reader may stop: little where little is left.
pub(crate) fn piece(most: usize) -> usize {
    const SMALL: usize = 8 << 10;
    let (limit, held) = usage();
    if held > limit / 2 { SMALL.min(most) } else { most }
}

#[cfg(test)]
mod tests;
