//! A listener in a pod whose connections are each served on a thread of their own: what every server of the
//! suites stands on.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use ambit_harness::Place;
use anyhow::{Context, Result};

/// A listener on both families. Dropping it closes it; connections go on until their clients end them.
#[derive(Debug)]
pub(crate) struct Listening {
    address: SocketAddr,
    place: Place,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Listens on a port of every address of the place, as `name` in messages.
    pub(crate) fn start(
        place: &Place,
        name: &str,
        port: u16,
        serve: impl FnOnce(TcpStream) + Clone + Send + 'static,
    ) -> Result<Self> {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = place
            .run(|| TcpListener::bind(address))?
            .with_context(|| format!("{name}: failed to listen on {port}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let accepted = Arc::new(AtomicUsize::new(0));
        let (ending, counter) = (Arc::clone(&stop), Arc::clone(&accepted));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ending.load(Ordering::Acquire) {
                    return;
                }
                counter.fetch_add(1, Ordering::Relaxed);
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Ok(Self { address, place: place.clone(), stop, accepted, thread: Some(thread) })
    }

    /// How many connections it has accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let port = self.address.port();
        // Wakes the accept; loopback is never captured.
        let _ = self.place.run(|| TcpStream::connect((Ipv6Addr::LOCALHOST, port)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
