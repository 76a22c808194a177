//! HBONE connections shared between tunnels: [`Pool::open`].
//!
//! Connections are kept per source workload (their sockets live in its namespace), identities and peer. While
//! a dial is under way all callers that need it wait for it. A tunnel that a kept connection refused before
//! the peer looked at it is asked for again on a fresh one.

mod entries;
mod key;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::model::{Identity, WorkloadUid};
use parking_lot::Mutex;
use tokio::sync::watch;

use self::entries::{Entries, Find, Place};
pub use self::key::Key;
use crate::client::{self, Connection};
use crate::request::ConnectRequest;
use crate::{Error, Tunnel};

/// How often a tunnel is requested: kept connections may all be dead, and a fresh one may be sent GOAWAY
/// at once.
const ATTEMPTS: usize = 3;
/// How many dials one tunnel may begin: others may take all the places on a new connection, or its peer may
/// close it at once.
const DIALS: usize = 5;

/// Makes connections: TCP from the source's namespace, then [`crate::client::connect`].
pub trait Dial: Send + Sync + 'static {
    /// Why it failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Runs in a task of its own: the callers that wait for it may go away.
    fn dial(&self, key: &Key) -> impl Future<Output = Result<Connection, Self::Error>> + Send;
}

/// Why a tunnel could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PoolError<E: std::error::Error + 'static> {
    /// No connection could be made.
    #[error("failed to connect to {address}")]
    Dial {
        /// The peer's address.
        address: SocketAddr,
        /// Why; shared by all callers that waited for the dial.
        source: Arc<E>,
    },
    /// The dial took too long.
    #[error("failed to connect to {address} within {timeout:?}")]
    DialTimeout {
        /// The peer's address.
        address: SocketAddr,
        /// How long a dial may take.
        timeout: Duration,
    },
    /// The task that dialled ended without a result.
    #[error("failed to connect to {address}: dial was aborted")]
    DialLost {
        /// The peer's address.
        address: SocketAddr,
    },
    /// There is a connection, but the tunnel was not opened on it.
    #[error("failed to open tunnel through {address}")]
    Open {
        /// The peer's address.
        address: SocketAddr,
        /// Why.
        source: Error,
    },
}

/// How one dial ended, for all callers that wait for it.
enum Dialed<E> {
    Underway,
    Kept,
    Failed(Arc<E>),
    TimedOut,
}

type Flight<E> = watch::Receiver<Dialed<E>>;

/// The connections. Clones are the same pool.
pub struct Pool<D: Dial>(Arc<Inner<D>>);

struct Inner<D: Dial> {
    dial: D,
    dial_timeout: Duration,
    entries: Mutex<Entries<Flight<D::Error>>>,
}

impl<D: Dial> Pool<D> {
    /// A pool without connections. `dial_timeout` bounds each dial, TLS handshake included.
    pub fn new(dial: D, dial_timeout: Duration) -> Self {
        Self(Arc::new(Inner { dial, dial_timeout, entries: Mutex::default() }))
    }

    /// Opens a tunnel on a kept connection or a new one. Has no deadline but the dial's: the peer answers
    /// when it has reached the application. Cancel safe.
    ///
    /// A kept connection that turns out to be broken is replaced as well: no byte of the application has been
    /// sent then.
    pub async fn open(&self, key: &Key, request: &ConnectRequest) -> Result<Tunnel, PoolError<D::Error>> {
        let mut newer_than = 0;
        for attempt in 1.. {
            let place = self.0.place(key, newer_than).await?;
            let fresh = place.first;
            let error = match client::open(place.slot, request).await {
                Ok(tunnel) => return Ok(tunnel),
                Err(error) => error,
            };
            // Whatever is kept now is as suspect as what just failed; what is being dialled is not.
            newer_than = newer_than.max(self.0.entries.lock().newest(key));
            let again = error.is_unprocessed() || (error.is_broken() && !fresh);
            if again {
                // Tunnels that are open on it go on.
                place.connection.close();
            }
            if !again || attempt == ATTEMPTS {
                return Err(PoolError::Open { address: key.address, source: error });
            }
            tracing::debug!(peer = %key.address, error = error.chain(), "tunnel request retried");
        }
        unreachable!("the loop returns")
    }

    /// Opens no more tunnels over the source's present connections: it left. Open tunnels go on.
    pub fn retire_source(&self, source: &WorkloadUid) {
        self.retire(|key| key.source == *source);
    }

    /// Opens no more tunnels over connections made with an older certificate of the identity. Open tunnels go
    /// on.
    pub fn retire_identity(&self, identity: &Identity) {
        self.retire(|key| key.identity == *identity);
    }

    /// Opens no more tunnels over any present connection: the daemon drains. Open tunnels go on.
    pub fn retire_all(&self) {
        self.retire(|_| true);
    }

    /// How many connections are kept.
    pub fn connections(&self) -> usize {
        self.0.entries.lock().connections()
    }

    fn retire(&self, which: impl Fn(&Key) -> bool) {
        let retired = self.0.entries.lock().take(which);
        // Without the lock: closing calls back to `forget`.
        for connection in retired {
            connection.close();
        }
    }
}

impl<D: Dial> Inner<D> {
    /// A place on a connection for `key` that was made after the one numbered `newer_than`.
    async fn place(self: &Arc<Self>, key: &Key, newer_than: u64) -> Result<Place, PoolError<D::Error>> {
        let address = key.address;
        let mut begun = 0;
        loop {
            let mut flight = {
                let mut entries = self.entries.lock();
                match entries.find(key, newer_than) {
                    Find::Place(place) => return Ok(place),
                    Find::Dialing(flight) => flight,
                    Find::Nothing if begun == DIALS => {
                        return Err(PoolError::Open { address, source: Error::ConnectionClosed });
                    }
                    Find::Nothing => {
                        begun += 1;
                        let (sender, flight) = watch::channel(Dialed::Underway);
                        let number = entries.begin(key, flight.clone());
                        tokio::spawn(self.clone().dial(key.clone(), number, sender));
                        flight
                    }
                }
            };
            let Ok(dialed) = flight.wait_for(|dialed| !matches!(dialed, Dialed::Underway)).await else {
                return Err(PoolError::DialLost { address });
            };
            match &*dialed {
                Dialed::Underway | Dialed::Kept => {}
                Dialed::Failed(source) => {
                    return Err(PoolError::Dial { address, source: source.clone() });
                }
                Dialed::TimedOut => {
                    return Err(PoolError::DialTimeout { address, timeout: self.dial_timeout });
                }
            }
        }
    }

    /// Dials and keeps the connection, unless its key was retired meanwhile: the callers that wait then dial
    /// again.
    async fn dial(self: Arc<Self>, key: Key, number: u64, flight: watch::Sender<Dialed<D::Error>>) {
        let landing = Landing { inner: &self, key: &key, number };
        let dialed = match tokio::time::timeout(self.dial_timeout, self.dial.dial(&key)).await {
            Ok(Ok(connection)) => {
                let kept = self.entries.lock().keep(&key, number, connection.clone());
                if kept {
                    let (pool, key) = (Arc::downgrade(&self), key.clone());
                    connection.on_close(move || {
                        if let Some(pool) = pool.upgrade() {
                            pool.entries.lock().forget(&key, number);
                        }
                    });
                } else {
                    connection.close();
                }
                Dialed::Kept
            }
            Ok(Err(error)) => Dialed::Failed(Arc::new(error)),
            Err(_elapsed) => Dialed::TimedOut,
        };
        drop(landing);
        flight.send_replace(dialed);
    }
}

/// Takes the dial off the list however it ends, so that the next caller dials again.
struct Landing<'a, D: Dial> {
    inner: &'a Inner<D>,
    key: &'a Key,
    number: u64,
}

impl<D: Dial> Drop for Landing<'_, D> {
    fn drop(&mut self) {
        self.inner.entries.lock().landed(self.key, self.number);
    }
}

impl<D: Dial> Clone for Pool<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Dial> fmt::Debug for Pool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("connections", &self.connections()).finish_non_exhaustive()
    }
}
