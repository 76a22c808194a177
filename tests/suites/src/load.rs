//! Steady traffic while something else happens: new connections one after the other, and one that stays.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ambit_harness::{Place, eventually};
use anyhow::{Context, Result, ensure};

use crate::talk::{ask, greeted};

/// Traffic that runs until it is stopped.
#[derive(Debug)]
pub struct Load {
    progress: Arc<Progress>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads of a load have done so far, and whether they go on.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    stop: AtomicBool,
    connections: AtomicUsize,
    round_trips: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

/// One thread of a load: counts what it has done, until it is told to end.
type Work = fn(&Progress, &Place, SocketAddr) -> Result<()>;

impl Progress {
    /// Whether the thread goes on.
    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Acquire)
    }

    /// A new connection has worked.
    pub(crate) fn connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        rest();
    }

    /// A round trip on the connection that stays.
    pub(crate) fn round_trip(&self) {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        rest();
    }

    fn counts(&self) -> (usize, usize) {
        (self.connections.load(Ordering::Relaxed), self.round_trips.load(Ordering::Relaxed))
    }

    fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn failed(&self, error: &anyhow::Error) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
    }
}

/// Load, not a flood: the machine has other things to do.
fn rest() {
    std::thread::sleep(Duration::from_millis(5));
}

/// The outcome of a load.
#[derive(Clone, Debug)]
pub struct Report {
    /// New connections that worked.
    pub connections: usize,
    /// Round trips on the connection that stayed.
    pub round_trips: usize,
    pub failures: Vec<String>,
}

impl Report {
    /// An error if anything failed.
    pub fn flawless(&self) -> Result<()> {
        println!("{} connections, {} round trips", self.connections, self.round_trips);
        ensure!(self.failures.is_empty(), "{}", self.failures.join("; "));
        Ok(())
    }
}

impl Load {
    /// From a place to each of these servers (see [`crate::Server`]): one thread of new connections and one
    /// lasting connection each.
    pub fn start(place: &Place, servers: &[SocketAddr]) -> Self {
        Self::of(place, servers, [new_connections, one_connection])
    }

    /// From a place to each of these servers: one thread of each work.
    pub(crate) fn of(place: &Place, servers: &[SocketAddr], works: [Work; 2]) -> Self {
        let progress = Arc::new(Progress::default());
        let mut threads = Vec::new();
        for to in servers.iter().copied() {
            for work in works {
                let (progress, place) = (Arc::clone(&progress), place.clone());
                threads.push(std::thread::spawn(move || {
                    if let Err(error) = work(&progress, &place, to) {
                        progress.failed(&error);
                    }
                }));
            }
        }
        Self { progress, threads }
    }

    /// Waits until so many more connections and round trips have been made: the load is really on.
    pub fn progress(&self, more: usize) -> Result<()> {
        let (connections, round_trips) = self.progress.counts();
        eventually("the load makes progress", || {
            if !self.progress.failures().is_empty() {
                // The report says it; waiting for progress would hide it.
                return Ok(());
            }
            let now = self.progress.counts();
            ensure!(
                now.0 >= connections + more && now.1 >= round_trips + more,
                "from {connections}/{round_trips} to {now:?}"
            );
            Ok(())
        })
    }

    /// Ends the load.
    pub fn stop(self) -> Report {
        self.progress.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        let (connections, round_trips) = self.progress.counts();
        Report { connections, round_trips, failures: self.progress.failures() }
    }
}

fn new_connections(progress: &Progress, place: &Place, to: SocketAddr) -> Result<()> {
    while progress.goes_on() {
        let (number, _) = progress.counts();
        ask(place, to).with_context(|| format!("new connection after {number} others"))?;
        progress.connection();
    }
    Ok(())
}

fn one_connection(progress: &Progress, place: &Place, to: SocketAddr) -> Result<()> {
    let mut stream = greeted(place, to).context("failed to begin the lasting connection")?;
    let ping = [7; 64];
    while progress.goes_on() {
        let (_, number) = progress.counts();
        let mut pong = [0; 64];
        stream.write_all(&ping).with_context(|| {
            format!("failed to write on the lasting connection after {number} round trips")
        })?;
        stream.read_exact(&mut pong).with_context(|| {
            format!("failed to read on the lasting connection after {number} round trips")
        })?;
        ensure!(pong == ping, "the lasting connection brought other bytes");
        progress.round_trip();
    }
    Ok(())
}
