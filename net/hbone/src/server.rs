//! The server's side of HBONE connections: [`Server::serve`] carries one accepted socket to its end.

mod clients;
mod handshakes;

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ambit_core::model::Identity;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use self::clients::Clients;
use self::clients::{Most, Place};
use self::handshakes::Handshakes;
use crate::clock::wait_until;
use crate::keepalive::keep_alive;
use crate::memory::Inflow;
use crate::readahead::ReadAhead;
use crate::request::ConnectRequest;
use crate::{Error, Http2, Tunnel, tls};

type Connection = h2::server::Connection<TlsStream<ReadAhead>, Bytes>;

/// What servers allow their clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Windows, frames and times of each connection.
    pub http2: Http2,
    /// How long a client's handshake may take.
    pub handshake_timeout: Duration,
    /// How many handshakes may be under way; one more, and one of the client with the most is cut off.
    pub handshakes: usize,
    /// How many connections the clients of one workload may have.
    pub connections: usize,
    /// How many of them may come from one address.
    pub connections_from_one: usize,
    /// How long tunnels may outlive the certificate under which they were opened. New ones are refused at
    /// once.
    pub expired_for: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            http2: Http2::default(),
            handshake_timeout: Duration::from_secs(10),
            handshakes: 1024,
            connections: 1024,
            connections_from_one: 128,
            expired_for: Duration::from_hours(1),
        }
    }
}

/// Serves accepted sockets within one set of limits. Clones share them.
#[derive(Clone, Debug)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    /// Counted by the workload's [`Clients::id`] and the client's address.
    handshakes: Handshakes<(usize, IpAddr)>,
    /// Called with the duration of each successful TLS handshake.
    observe: fn(Duration),
}

/// The client of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Proven by its certificate.
    pub identity: Identity,
    /// Where the connection comes from.
    pub address: SocketAddr,
}

/// A request for a tunnel.
#[derive(Debug)]
pub struct Incoming {
    /// The client that asks.
    pub peer: Arc<Peer>,
    /// What it asks for.
    pub request: ConnectRequest,
    /// Takes the answer.
    pub responder: Responder,
}

/// The answer to give. Dropped unanswered, the request is reset.
#[derive(Debug)]
pub struct Responder {
    response: SendResponse<Bytes>,
    receive: RecvStream,
    send_buffer: usize,
    inflow: Arc<Inflow>,
    _unanswered: OwnedSemaphorePermit,
}

impl Server {
    /// A server within these limits.
    pub fn new(settings: Settings) -> Self {
        Self::observed(settings, |_| {})
    }

    /// A server that calls `observe` with the duration of each successful TLS handshake.
    pub fn observed(settings: Settings, observe: fn(Duration)) -> Self {
        let handshakes = Handshakes::new(settings.handshakes);
        Self(Arc::new(Inner { settings, handshakes, observe }))
    }

    /// Serves one socket to its end. Each request runs in a task of its own: `handle` is called with it and
    /// returns the task's future. When `drain` resolves the client is sent GOAWAY, and the connection ends
    /// with its last tunnel. Dropping the future cuts the connection and resets its tunnels.
    ///
    /// `clients` are those of the workload that the socket is for.
    pub async fn serve<H, F>(
        &self,
        clients: &Clients,
        socket: TcpStream,
        config: Arc<rustls::ServerConfig>,
        drain: impl Future<Output = ()>,
        handle: H,
    ) -> Result<(), Error>
    where
        H: Fn(Incoming) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let settings = &self.0.settings;
        let address = socket.peer_addr().map_err(|source| Error::Handshake { source })?;
        let client = address.ip().to_canonical();
        let most = Most { of_all: settings.connections, of_one: settings.connections_from_one };
        // A handshake costs more than anything else that is refused.
        if !clients.admit(client, most) {
            // Fails only for a connection that is gone.
            let _gone = socket.set_zero_linger();
            return Err(Error::TooManyConnections { address });
        }
        let timeout = settings.handshake_timeout;
        let handshake = Box::pin(handshake(socket, address, config, &settings.http2, self.0.observe));
        let done = self
            .0
            .handshakes
            .run((clients.id(), client), tokio::time::timeout(timeout, handshake))
            .await?
            .map_err(|_elapsed| Error::HandshakeTimeout { timeout })??;
        let place = clients.enter(client, most).ok_or(Error::TooManyConnections { address })?;
        serve_streams(done, place, clients.memory().connection(), settings, drain, handle).await
    }
}

/// A connection whose client has proven its identity.
struct Proven {
    peer: Peer,
    /// Until when that holds.
    until: SystemTime,
    connection: Connection,
}

/// TLS, then the HTTP/2 preface.
async fn handshake(
    socket: TcpStream,
    address: SocketAddr,
    config: Arc<rustls::ServerConfig>,
    http2: &Http2,
    observe: fn(Duration),
) -> Result<Proven, Error> {
    let handshake = |source| Error::Handshake { source };
    socket.set_nodelay(true).map_err(handshake)?;
    let socket = ReadAhead::new(socket);
    let since = Instant::now();
    let mut stream = TlsAcceptor::from(config).accept(socket).await.map_err(handshake)?;
    let took = since.elapsed();
    let session = stream.get_mut().1;
    session.set_buffer_limit(Some(tls::SEND_BUFFER));
    tls::require_http2(session)?;
    let (identity, until) = tls::peer(session)?;
    observe(took);
    let connection = h2::server::Builder::new()
        .initial_window_size(http2.stream_window)
        .data_frame_budget(http2.frame_budget())
        .max_frame_size(http2.frame_size)
        .max_send_buffer_size(http2.send_buffer)
        .max_header_list_size(http2.header_size)
        .max_concurrent_streams(http2.streams)
        .max_concurrent_reset_streams(http2.resets)
        .max_pending_accept_reset_streams(http2.resets)
        .handshake(stream)
        .await
        .map_err(|source| Error::Connection { source })?;
    Ok(Proven { peer: Peer { identity, address }, until, connection })
}

async fn serve_streams<H, F>(
    proven: Proven,
    _place: Place,
    inflow: Arc<Inflow>,
    settings: &Settings,
    drain: impl Future<Output = ()>,
    handle: H,
) -> Result<(), Error>
where
    H: Fn(Incoming) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let Proven { peer, until, mut connection } = proven;
    let http2 = &settings.http2;
    let mut dead = pin!(keep_alive(connection.ping_pong(), http2));
    // First for the certificate's end, then for the end of what was opened under it.
    let mut expiry = pin!(wait_until(until));
    let mut expired = false;
    let mut drain = pin!(async {
        drain.await;
        Some(())
    });
    let mut draining = false;
    let client = Client {
        peer: Arc::new(peer),
        unanswered: Arc::new(Semaphore::new(http2.streams as usize)),
        send_buffer: http2.send_buffer,
        inflow,
    };
    let most = http2.connection_window();
    loop {
        let accepting = poll_fn(|context| {
            client.inflow.watch(context.waker());
            if let Some(window) = client.inflow.window(most) {
                connection.set_target_window_size(window);
            }
            connection.poll_accept(context)
        });
        tokio::select! {
            accepted = accepting => match accepted {
                Some(Ok((request, response))) => client.accept(request, response, &handle),
                Some(Err(source)) => return Err(Error::Connection { source }),
                None => return Ok(()),
            },
            error = &mut dead => return Err(error),
            Some(()) = &mut drain, if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = &mut expiry => {
                if std::mem::replace(&mut expired, true) {
                    return Err(Error::CertificateExpired { identity: client.peer.identity.clone() });
                }
                if !std::mem::replace(&mut draining, true) {
                    connection.graceful_shutdown();
                }
                expiry.set(wait_until(until + settings.expired_for));
            }
        }
    }
}

/// One connection's client.
struct Client {
    peer: Arc<Peer>,
    /// A stream that the client has reset makes room for the next one at once, its handler a moment later:
    /// this bounds the handlers.
    unanswered: Arc<Semaphore>,
    send_buffer: usize,
    /// What its tunnels hold.
    inflow: Arc<Inflow>,
}

impl Client {
    /// Gives a valid request to the handler; answers an invalid one.
    fn accept<H, F>(&self, request: Request<RecvStream>, mut response: SendResponse<Bytes>, handle: &H)
    where
        H: Fn(Incoming) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let Ok(unanswered) = self.unanswered.clone().try_acquire_owned() else {
            response.send_reset(Reason::REFUSED_STREAM);
            return;
        };
        let peer = &self.peer;
        match ConnectRequest::from_http(&request) {
            Ok(parsed) => {
                let responder = Responder {
                    response,
                    receive: request.into_body(),
                    send_buffer: self.send_buffer,
                    inflow: self.inflow.clone(),
                    _unanswered: unanswered,
                };
                tokio::spawn(handle(Incoming { peer: peer.clone(), request: parsed, responder }));
            }
            Err(error) => {
                let Peer { identity, address } = &**peer;
                tracing::debug!(%identity, %address, %error, "invalid tunnel request");
                answer(&mut response, error.status());
            }
        }
    }
}

/// Refuses. A client that is gone already needs no answer; one that is still sending is reset once it has the
/// answer, when the stream is dropped.
fn answer(response: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut head = Response::new(());
    *head.status_mut() = status;
    if let Err(error) = response.send_response(head, true) {
        tracing::trace!(%error, "failed to send a tunnel's refusal");
    }
}

impl Responder {
    /// Answers 200: the tunnel is open.
    pub fn accept(mut self) -> Result<Tunnel, Error> {
        let send = self
            .response
            .send_response(Response::new(()), false)
            .map_err(|source| Error::Stream { source })?;
        Ok(Tunnel::new(send, self.receive, self.send_buffer, None, self.inflow))
    }

    /// Answers with a status that is not 2xx.
    pub fn refuse(mut self, status: StatusCode) {
        answer(&mut self.response, status);
    }

    /// Resolves when the client has given up. Cancel safe.
    pub async fn abandoned(&mut self) {
        let _reason = poll_fn(|context| self.response.poll_reset(context)).await;
    }
}
