//! The servers themselves: HTTP/1.1, bounded in header size, time, body and connections, on one thread.
//!
//! Entry point: [`Admin::start`].

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};

use super::router::Router;
use crate::drain::Drain;
use crate::error::Error;

/// Connections one server has at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 64;
/// The whole head of a request.
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// For a request's head, and between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a connection as a whole: a reader that stalls gives its place back.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(1);
/// For the answer under way when a connection's time is up.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// Before accepting again when it failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One server: where it listens and what it answers.
#[derive(Debug)]
pub struct Server {
    /// Its name in errors and logs.
    pub name: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it answers.
    pub router: Router,
}

/// The running servers. They end with [`Admin::stop`], or abruptly when dropped.
#[derive(Debug)]
pub struct Admin {
    addresses: Vec<SocketAddr>,
    /// Carries the deadline; dropped unsent it means at once.
    stop: oneshot::Sender<Duration>,
    stopped: oneshot::Receiver<()>,
}

impl Admin {
    /// Binds every address (the error names the one that failed) and serves from a thread of its own.
    pub fn start(servers: Vec<Server>) -> Result<Self, Error> {
        let bound = servers.into_iter().map(Bound::new).collect::<Result<Vec<_>, _>>()?;
        let addresses = bound.iter().map(|server| server.address).collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::AdminThread { source })?;
        let (stop, stop_asked) = oneshot::channel();
        let (report_stopped, stopped) = oneshot::channel();
        thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                runtime.block_on(run(bound, stop_asked));
                // Fails only when the handle was dropped.
                let _ = report_stopped.send(());
            })
            .map_err(|source| Error::AdminThread { source })?;
        Ok(Self { addresses, stop, stopped })
    }

    /// Where the servers listen, in the order given.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops accepting, lets running answers finish within the deadline, and ends the thread. The last thing
    /// a daemon does: metrics and readiness are asked for while it drains.
    pub async fn stop(self, deadline: Duration) {
        // An error of either means that the thread has already ended.
        if self.stop.send(deadline).is_ok() {
            let _ = self.stopped.await;
        }
    }
}

/// A server whose address is taken.
struct Bound {
    name: &'static str,
    address: SocketAddr,
    listener: TcpListener,
    router: Router,
}

impl Bound {
    fn new(server: Server) -> Result<Self, Error> {
        let Server { name, address, router } = server;
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        match bind() {
            Ok((address, listener)) => Ok(Self { name, address, listener, router }),
            Err(source) => Err(Error::Bind { server: name, address, source }),
        }
    }
}

async fn run(servers: Vec<Bound>, stop: oneshot::Receiver<Duration>) {
    let drain = Drain::new();
    for server in servers {
        match tokio::net::TcpListener::from_std(server.listener) {
            Ok(listener) => drop(tokio::spawn(accept(listener, Arc::new(server.router), drain.clone()))),
            Err(error) => tracing::error!(server = server.name, %error, "failed to serve"),
        }
    }
    if let Ok(deadline) = stop.await {
        // Connections left at the deadline end with the runtime.
        let _ = drain.finish(deadline).await;
    }
}

async fn accept(listener: tokio::net::TcpListener, router: Arc<Router>, drain: Drain) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.started() => return,
        };
        let Ok((stream, _client)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (router, connection_drain) = (router.clone(), drain.clone());
        drain.spawn(async move {
            serve(stream, router, &connection_drain).await;
            drop(place);
        });
    }
}

/// Answers one connection's requests until it ends, its time is up, or the servers stop.
async fn serve(stream: TcpStream, router: Arc<Router>, drain: &Drain) {
    let answer = service_fn(move |request: http::Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<http::Response<Full<Bytes>>, Infallible>(router.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // A client that misbehaves or leaves is not worth a log line.
        _ended = connection.as_mut() => return,
        () = tokio::time::sleep(CONNECTION_LIFETIME) => {}
        () = drain.started() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ended_or_cut = tokio::time::timeout(LAST_ANSWER, connection).await;
}

#[cfg(test)]
mod tests;
