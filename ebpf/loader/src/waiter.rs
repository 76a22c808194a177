//! Waiting until records must be read or somebody calls: [`Waiter`].
//!
//! A thread that waits is woken when a ring buffer fills up, when a record must be acted upon at once, and by
//! [`Waiter::wake`]. Other records do not wake it: what they say may wait for the end of the time.

#![expect(unsafe_code, reason = "thin wrappers around epoll and an event descriptor")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::{Dataplane, Error};

/// See the module. One thread waits, any may wake it.
#[derive(Debug)]
pub struct Waiter {
    epoll: OwnedFd,
    event: OwnedFd,
}

/// How many descriptors are waited for.
const MOST: usize = 3;

fn descriptor(result: libc::c_int) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a system call has just returned it, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

impl Waiter {
    fn new<'a>(rings: impl IntoIterator<Item = &'a (impl AsFd + 'a)>) -> io::Result<Self> {
        // SAFETY: the calls take numbers only.
        let (epoll, event) = unsafe {
            (
                descriptor(libc::epoll_create1(libc::EPOLL_CLOEXEC))?,
                descriptor(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?,
            )
        };
        let waiter = Self { epoll, event };
        waiter.watch(&waiter.event)?;
        rings.into_iter().try_for_each(|ring| waiter.watch(ring))?;
        Ok(waiter)
    }

    /// Edge-triggered: a ring with unread records is always readable, and only a wake-up that the programs
    /// ask for counts.
    fn watch(&self, watched: &impl AsFd) -> io::Result<()> {
        let edge = libc::EPOLLIN | libc::EPOLLET;
        let mut event = libc::epoll_event { events: edge.cast_unsigned(), u64: 0 };
        let (epoll, watched) = (self.epoll.as_raw_fd(), watched.as_fd().as_raw_fd());
        // SAFETY: the event lives until the call returns.
        let result = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, watched, &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits, at most for this long.
    pub fn wait(&self, most: Duration) -> Result<(), Error> {
        let most = libc::c_int::try_from(most.as_millis()).unwrap_or(libc::c_int::MAX);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MOST];
        let room = libc::c_int::try_from(MOST).unwrap_or(1);
        // SAFETY: there is room for so many events.
        let result = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), room, most) };
        if result >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(Error::Wait(error)),
        }
    }

    /// Wakes the thread that waits, or the next one that will.
    pub fn wake(&self) {
        let one = 1_u64;
        // Fails only when it was called 2^64 times without a wait.
        // SAFETY: eight bytes that live until the call returns.
        let _full = unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }
}

impl Dataplane {
    /// Waits for this instance's records.
    pub fn waiter(&self) -> Result<Waiter, Error> {
        Waiter::new(&*self.rings.lock()).map_err(Error::Wait)
    }
}
