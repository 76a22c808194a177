//! The client's side of one connection: [`connect`] makes it, [`Connection::open`] opens tunnels on it.
//!
//! A task drives each connection; it ends when the connection was closed to new tunnels and the last one has
//! ended, when it was idle for too long, or when the peer is gone.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::SystemTime;

use bytes::Bytes;
use h2::client::SendRequest;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clock::wait_until;
use crate::keepalive::keep_alive;
use crate::readahead::ReadAhead;
use crate::request::ConnectRequest;
use crate::{Error, Http2, Tunnel, tls};

type Driver = h2::client::Connection<TlsStream<ReadAhead>, Bytes>;

/// An HBONE connection to one peer, shared by tunnels. Clones are the same connection.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    streams: usize,
    send_buffer: usize,
}

struct State {
    /// `None`: closed to new tunnels. The last sender's end lets the driver end.
    sender: Option<SendRequest<Bytes>>,
    tunnels: usize,
    idle_since: Instant,
    on_close: Option<Box<dyn FnOnce() + Send>>,
}

/// A place for one tunnel on a connection, given back when dropped.
pub(crate) struct Slot(Arc<Shared>);

/// Makes a connection over an established TCP connection: TLS, then HTTP/2. Has no deadline of its own.
///
/// With TLS 1.3 a server refuses a client's certificate only after this has succeeded: the first
/// [`Connection::open`] says so.
pub async fn connect(
    socket: TcpStream,
    config: Arc<rustls::ClientConfig>,
    http2: &Http2,
) -> Result<Connection, Error> {
    let handshake = |source| Error::Handshake { source };
    socket.set_nodelay(true).map_err(handshake)?;
    let name = ServerName::from(socket.peer_addr().map_err(handshake)?.ip());
    let socket = ReadAhead::new(socket);
    let mut stream = TlsConnector::from(config).connect(name, socket).await.map_err(handshake)?;
    let session = stream.get_mut().1;
    tls::require_http2(session)?;
    let (_, until) = tls::peer(session)?;
    session.set_buffer_limit(Some(tls::SEND_BUFFER));
    let (sender, driver) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(http2.stream_window)
        .initial_connection_window_size(http2.connection_window())
        .data_frame_budget(http2.frame_budget())
        .max_frame_size(http2.frame_size)
        .max_send_buffer_size(http2.send_buffer)
        .max_header_list_size(http2.header_size)
        .max_concurrent_reset_streams(http2.resets)
        .initial_max_send_streams(http2.streams as usize)
        .handshake(stream)
        .await
        .map_err(|source| Error::Connection { source })?;
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            sender: Some(sender),
            tunnels: 0,
            idle_since: Instant::now(),
            on_close: None,
        }),
        streams: http2.streams as usize,
        send_buffer: http2.send_buffer,
    });
    tokio::spawn(drive(driver, shared.clone(), until, http2.clone()));
    Ok(Connection(shared))
}

/// Runs the connection to its end.
async fn drive(mut driver: Driver, shared: Arc<Shared>, until: SystemTime, http2: Http2) {
    let pings = driver.ping_pong();
    let end = tokio::select! {
        end = &mut driver => end.map_err(|source| Error::Connection { source }),
        dead = keep_alive(pings, &http2) => Err(dead),
        () = close_when_idle(&shared, &http2) => Ok(()),
        () = close_when_expired(&shared, until) => Ok(()),
    };
    // Before the driver and its streams are gone, so that nobody is given a place on it any more.
    shared.close();
    if let Err(error) = end {
        tracing::debug!(error = error.chain(), "HBONE connection ended");
    }
}

/// Closes the connection when it had no tunnel for a while; the driver then ends by itself.
async fn close_when_idle(shared: &Shared, http2: &Http2) {
    loop {
        let wait = shared.close_if_idle(http2);
        let Some(wait) = wait else { return pending().await };
        tokio::time::sleep_until(wait).await;
    }
}

/// Opens no tunnels under a server's certificate that has expired. The server ends those that are open.
async fn close_when_expired(shared: &Shared, until: SystemTime) {
    wait_until(until).await;
    shared.close();
    pending::<()>().await;
}

impl Connection {
    /// Opens a tunnel.
    pub async fn open(&self, request: &ConnectRequest) -> Result<Tunnel, Error> {
        self.reserve().ok_or(Error::ConnectionClosed)?.open(request).await
    }

    /// Takes no new tunnels from now on; those that are open go on, and with the last the connection ends.
    pub fn close(&self) {
        self.0.close();
    }

    /// Whether the connection takes no new tunnels any more.
    pub fn is_closed(&self) -> bool {
        self.0.state.lock().sender.is_none()
    }

    /// How many tunnels are open or being opened.
    pub fn tunnels(&self) -> usize {
        self.0.state.lock().tunnels
    }

    /// A place for one more tunnel, unless the connection is full, closed, or the peer said that it is going
    /// away.
    pub(crate) fn reserve(&self) -> Option<Slot> {
        let state = &mut *self.0.state.lock();
        let sender = state.sender.as_mut()?;
        // Asks whether the connection has failed or was sent GOAWAY; it is never pending for a sender without
        // requests.
        if sender.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready_and_failed() {
            return None;
        }
        let most = sender.current_max_send_streams().min(self.0.streams);
        if state.tunnels >= most {
            return None;
        }
        state.tunnels += 1;
        Some(Slot(self.0.clone()))
    }

    /// Calls back once when the connection takes no new tunnels any more: at once if that is so already.
    pub(crate) fn on_close(&self, call: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock();
        if state.sender.is_some() {
            state.on_close = Some(Box::new(call));
        } else {
            drop(state);
            call();
        }
    }
}

/// Reads a poll that is asked only whether it has failed.
trait ReadyAndFailed {
    fn is_ready_and_failed(&self) -> bool;
}

impl ReadyAndFailed for std::task::Poll<Result<(), h2::Error>> {
    fn is_ready_and_failed(&self) -> bool {
        matches!(self, Self::Ready(Err(_)))
    }
}

impl Shared {
    fn close(&self) {
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
    fn close_if_idle(&self, http2: &Http2) -> Option<Instant> {
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

impl Slot {
    /// Opens a tunnel in this place.
    pub(crate) async fn open(self, request: &ConnectRequest) -> Result<Tunnel, Error> {
        let stream = |source| Error::Stream { source };
        let request = request.to_http()?;
        // A clone of its own: a sender remembers whether its last request still waits for its turn.
        let sender = self.0.state.lock().sender.clone();
        let (response, send) =
            sender.ok_or(Error::ConnectionClosed)?.send_request(request, false).map_err(stream)?;
        let (head, receive) = response.await.map_err(stream)?.into_parts();
        if !head.status.is_success() {
            return Err(Error::Refused { status: head.status });
        }
        Ok(Tunnel { send, receive, send_buffer: self.0.send_buffer, slot: Some(self) })
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

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        f.debug_struct("Connection")
            .field("tunnels", &state.tunnels)
            .field("closed", &state.sender.is_none())
            .finish_non_exhaustive()
    }
}
