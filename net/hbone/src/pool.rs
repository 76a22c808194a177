//! HBONE connections shared between tunnels: [`Pool::open`].
//!
//! Connections are kept per source workload (their sockets live in its namespace), identities and peer.
//! Callers for whom there is no place wait in line, and each new connection serves as many of them as it has
//! places: a burst costs each caller one wake-up, and as many dials as it needs connections. A tunnel that a
//! kept connection refused before the peer looked at it is asked for again on a fresh one.

mod entries;
mod key;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::model::{Identity, WorkloadUid};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::entries::{Entries, Place, Served};
pub use self::key::Key;
use crate::client::{self, Connection};
use crate::request::ConnectRequest;
use crate::{Error, Tunnel};

/// How often a tunnel is requested: kept connections may all be dead, and a fresh one may be sent GOAWAY
/// at once.
const ATTEMPTS: usize = 3;
/// How often one tunnel may wait in line: a new connection's peer may close it at once.
const WAITS: usize = 5;

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

/// Why there is no place for those that wait.
enum Failed<E> {
    /// The dial failed.
    Dial(Arc<E>),
    /// It took too long.
    TimedOut,
    /// Its task ended without a result.
    Lost,
    /// The connection was closed before they had a place on it.
    Closed,
}

impl<E> Clone for Failed<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Dial(error) => Self::Dial(error.clone()),
            Self::TimedOut => Self::TimedOut,
            Self::Lost => Self::Lost,
            Self::Closed => Self::Closed,
        }
    }
}

/// What one that waits is told.
type Answer<E> = Result<Place, Failed<E>>;

/// The connections. Clones are the same pool.
pub struct Pool<D: Dial>(Arc<Inner<D>>);

struct Inner<D: Dial> {
    dial: D,
    dial_timeout: Duration,
    entries: Mutex<Entries<Failed<D::Error>>>,
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
        for _ in 0..WAITS {
            let waiting = {
                let mut entries = self.entries.lock();
                if let Some(place) = entries.find(key, newer_than) {
                    return Ok(place);
                }
                let waiting: oneshot::Receiver<Answer<D::Error>> = entries.wait(key, newer_than);
                self.dial_enough(&mut entries, key);
                waiting
            };
            match waiting.await {
                Ok(Ok(place)) => return Ok(place),
                // Its key was retired, or the peer closed the connection: once more.
                Err(_) | Ok(Err(Failed::Closed)) => {}
                Ok(Err(Failed::Dial(source))) => return Err(PoolError::Dial { address, source }),
                Ok(Err(Failed::Lost)) => return Err(PoolError::DialLost { address }),
                Ok(Err(Failed::TimedOut)) => {
                    return Err(PoolError::DialTimeout { address, timeout: self.dial_timeout });
                }
            }
        }
        Err(PoolError::Open { address, source: Error::ConnectionClosed })
    }

    /// Begins as many dials as those that wait need.
    fn dial_enough(self: &Arc<Self>, entries: &mut Entries<Failed<D::Error>>, key: &Key) {
        while let Some(number) = entries.begin(key) {
            tokio::spawn(self.clone().dial(key.clone(), number));
        }
    }

    /// Dials, keeps the connection and gives its places to those that wait; unless its key was retired
    /// meanwhile: then they wait for another.
    async fn dial(self: Arc<Self>, key: Key, number: u64) {
        let mut landing = Landing { inner: &self, key: &key, number, failed: Some(Failed::Lost) };
        let dialed = tokio::time::timeout(self.dial_timeout, self.dial.dial(&key)).await;
        landing.failed = match dialed {
            Ok(Ok(connection)) => {
                if self.keep(&key, number, &connection) {
                    let (pool, key) = (Arc::downgrade(&self), key.clone());
                    connection.on_close(move || {
                        if let Some(pool) = pool.upgrade() {
                            pool.entries.lock().forget(&key, number);
                        }
                    });
                } else {
                    connection.close();
                }
                None
            }
            Ok(Err(error)) => Some(Failed::Dial(Arc::new(error))),
            Err(_elapsed) => Some(Failed::TimedOut),
        };
    }

    /// Keeps a connection, if it is still wanted, and gives its places away.
    fn keep(self: &Arc<Self>, key: &Key, number: u64, connection: &Connection) -> bool {
        let mut entries = self.entries.lock();
        match entries.keep(key, number, connection.clone()) {
            Served::Unwanted => false,
            Served::Some => {
                self.dial_enough(&mut entries, key);
                true
            }
            Served::None => {
                let waiting = entries.give_up(key);
                drop(entries);
                for waiting in waiting {
                    drop(waiting.send(Err(Failed::Closed)));
                }
                true
            }
        }
    }
}

/// Takes the dial off the list however it ends, so that the next caller dials again. Where it was the last,
/// those that wait are told why it failed.
struct Landing<'a, D: Dial> {
    inner: &'a Inner<D>,
    key: &'a Key,
    number: u64,
    failed: Option<Failed<D::Error>>,
}

impl<D: Dial> Drop for Landing<'_, D> {
    fn drop(&mut self) {
        let failed = self.failed.take();
        let waiting = self.inner.entries.lock().landed(self.key, self.number, failed.is_some());
        for waiting in waiting {
            if let Some(failed) = &failed {
                // It may have gone.
                let _gone = waiting.send(Err(failed.clone()));
            }
        }
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
