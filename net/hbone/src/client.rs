//! The client's side of one connection: [`connect`] makes it, [`Connection::open`] opens tunnels on it.
//!
//! A task drives each connection; it ends when the connection was closed to new tunnels and the last one has
//! ended, when it was idle for too long, or when the peer is gone.

pub(crate) mod shared;

use std::fmt;
use std::future::{Future as _, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::shared::{Shared, Slot};
use crate::clock::wait_until;
use crate::keepalive::keep_alive;
use crate::memory::Account;
use crate::readahead::ReadAhead;
use crate::request::ConnectRequest;
use crate::{Error, Http2, Tunnel, tls};

type Driver = h2::client::Connection<TlsStream<ReadAhead>, Bytes>;

/// An HBONE connection to one peer, shared by tunnels. Clones are the same connection.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

/// Makes a connection over an established TCP connection: TLS, then HTTP/2. Has no deadline of its own.
/// `memory` is the source workload's.
///
/// With TLS 1.3 a server refuses a client's certificate only after this has succeeded: the error surfaces at
/// the first [`Connection::open`].
pub async fn connect(
    socket: TcpStream,
    config: Arc<rustls::ClientConfig>,
    http2: &Http2,
    memory: &Account,
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
        .data_frame_budget(http2.frame_budget())
        .max_frame_size(http2.frame_size)
        .max_send_buffer_size(http2.send_buffer)
        .max_header_list_size(http2.header_size)
        .max_concurrent_reset_streams(http2.resets)
        .initial_max_send_streams(http2.streams as usize)
        .handshake(stream)
        .await
        .map_err(|source| Error::Connection { source })?;
    let shared = Arc::new(Shared::new(sender, http2, memory.connection()));
    tokio::spawn(drive(driver, shared.clone(), until, http2.clone()));
    Ok(Connection(shared))
}

/// Runs the connection to its end.
async fn drive(mut driver: Driver, shared: Arc<Shared>, until: SystemTime, http2: Http2) {
    let pings = driver.ping_pong();
    let most = http2.connection_window();
    let driven = poll_fn(|context| {
        shared.inflow.watch(context.waker());
        if let Some(window) = shared.inflow.window(most) {
            driver.set_target_window_size(window);
        }
        Pin::new(&mut driver).poll(context)
    });
    let end = tokio::select! {
        end = driven => end.map_err(|source| Error::Connection { source }),
        dead = keep_alive(pings, &http2) => Err(dead),
        () = close_when_idle(&shared, &http2) => Ok(()),
        () = close_when_expired(&shared, until) => Ok(()),
    };
    // Before the driver and its streams are gone, so that no place on it is given away any more.
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
        open(self.reserve().ok_or(Error::ConnectionClosed)?, request).await
    }

    /// Takes no new tunnels from now on; those that are open go on, and with the last the connection ends.
    pub fn close(&self) {
        self.0.close();
    }

    /// Whether the connection takes no new tunnels any more.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// How many tunnels are open or being opened.
    pub fn tunnels(&self) -> usize {
        self.0.tunnels()
    }

    /// A place for one more tunnel, unless the connection is full, closed, or the peer has sent GOAWAY.
    pub(crate) fn reserve(&self) -> Option<Slot> {
        self.0.reserve()
    }

    /// Calls back once when the connection takes no new tunnels any more: at once if that is so already.
    pub(crate) fn on_close(&self, call: impl FnOnce() + Send + 'static) {
        self.0.on_close(call);
    }
}

/// Opens a tunnel in a place on a connection.
pub(crate) async fn open(slot: Slot, request: &ConnectRequest) -> Result<Tunnel, Error> {
    let stream = |source| Error::Stream { source };
    let request = request.to_http()?;
    let mut sender = slot.0.sender().ok_or(Error::ConnectionClosed)?;
    let (response, send) = sender.send_request(request, false).map_err(stream)?;
    drop(sender);
    let (head, receive) = response.await.map_err(stream)?.into_parts();
    if !head.status.is_success() {
        return Err(Error::Refused { status: head.status });
    }
    let (send_buffer, inflow) = (slot.0.send_buffer, slot.0.inflow.clone());
    Ok(Tunnel::new(send, receive, send_buffer, Some(slot), inflow))
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("tunnels", &self.tunnels())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
