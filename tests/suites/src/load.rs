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
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    connections: AtomicUsize,
    round_trips: AtomicUsize,
    failures: Mutex<Vec<String>>,
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
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for to in servers.iter().copied() {
            for work in [new_connections as fn(&Shared, &Place, SocketAddr) -> Result<()>, one_connection] {
                let (shared, place) = (Arc::clone(&shared), place.clone());
                threads.push(std::thread::spawn(move || {
                    if let Err(error) = work(&shared, &place, to) {
                        shared
                            .failures
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(format!("{error:#}"));
                    }
                }));
            }
        }
        Self { shared, threads }
    }

    /// Waits until so many more connections and round trips have been made: the load is really on.
    pub fn progress(&self, more: usize) -> Result<()> {
        let (connections, round_trips) = self.counts();
        eventually("the load makes progress", || {
            let now = self.counts();
            let failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if !failures.is_empty() {
                // The report says it; waiting for progress would hide it.
                return Ok(());
            }
            ensure!(
                now.0 >= connections + more && now.1 >= round_trips + more,
                "from {connections}/{round_trips} to {now:?}"
            );
            Ok(())
        })
    }

    /// Ends the load.
    pub fn stop(self) -> Report {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        let failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Report {
            connections: self.shared.connections.load(Ordering::Relaxed),
            round_trips: self.shared.round_trips.load(Ordering::Relaxed),
            failures,
        }
    }

    fn counts(&self) -> (usize, usize) {
        (self.shared.connections.load(Ordering::Relaxed), self.shared.round_trips.load(Ordering::Relaxed))
    }
}

fn new_connections(shared: &Shared, place: &Place, to: SocketAddr) -> Result<()> {
    while !shared.stop.load(Ordering::Acquire) {
        let number = shared.connections.load(Ordering::Relaxed);
        ask(place, to).with_context(|| format!("new connection after {number} others"))?;
        shared.connections.fetch_add(1, Ordering::Relaxed);
        // Load, not a flood: the machine has other things to do.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn one_connection(shared: &Shared, place: &Place, to: SocketAddr) -> Result<()> {
    let mut stream = greeted(place, to).context("failed to begin the lasting connection")?;
    let ping = [7; 64];
    while !shared.stop.load(Ordering::Acquire) {
        let number = shared.round_trips.load(Ordering::Relaxed);
        let mut pong = [0; 64];
        stream.write_all(&ping).with_context(|| {
            format!("failed to write on the lasting connection after {number} round trips")
        })?;
        stream.read_exact(&mut pong).with_context(|| {
            format!("failed to read on the lasting connection after {number} round trips")
        })?;
        ensure!(pong == ping, "the lasting connection brought other bytes");
        shared.round_trips.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
