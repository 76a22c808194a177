//! The connections that requests of one kind share: [`Connections`].

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_core::Reason;
use ambit_proxy::dial::Failure;
use ambit_proxy::report::ending;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::idle::{self, Idle};
use super::lease::{Lease, Sender, Stream};
use super::load::Load;
use super::uplink::Uplink;
use crate::body::RequestBody;

/// Requests on one HTTP/2 connection before another is made beside it.
const SPREAD: usize = 32;
/// HTTP/2 connections that are made for the sake of spreading.
const SPREAD_OVER: usize = 4;
/// Requests on one HTTP/2 connection at the most.
const STREAMS: usize = 100;
/// The largest head of a response.
const HEAD: u32 = 64 << 10;
/// What is read ahead of a body's reader.
const BUFFER: usize = 128 << 10;
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;

/// Connections to one endpoint, for one client.
#[derive(Debug, Default)]
pub(super) struct Connections {
    idle: Arc<Idle>,
    multiplexed: Mutex<Vec<Multiplexed>>,
    /// Requests that all need a new HTTP/2 connection make one, not one each.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Multiplexed {
    sender: http2::SendRequest<RequestBody>,
    streams: Arc<AtomicUsize>,
    /// When a request last began.
    used: Instant,
}

impl Connections {
    /// A connection for one request at a time.
    pub(super) async fn exclusive<F: Future<Output = Result<Uplink, Failure>>>(
        self: Arc<Self>,
        load: Option<Load>,
        fresh: bool,
        dial: impl FnOnce() -> F,
    ) -> Result<Lease, Failure> {
        let idle = if fresh { None } else { self.idle.take() };
        let (sender, used) = match idle {
            Some(sender) => (sender, true),
            None => (http1(dial().await?).await?, false),
        };
        Ok(Lease::new(Sender::Http1 { sender, idle: self.idle.clone() }, load, used))
    }

    /// A place on a connection for many requests.
    pub(super) async fn multiplexed<F: Future<Output = Result<Uplink, Failure>>>(
        self: Arc<Self>,
        load: Option<Load>,
        fresh: bool,
        dial: impl FnOnce() -> F,
    ) -> Result<Lease, Failure> {
        if let Some((sender, stream)) = self.place(fresh) {
            return Ok(Lease::new(Sender::Http2 { sender, _stream: stream }, load, true));
        }
        let _turn = self.turn.lock().await;
        // The one whose turn it was before has perhaps made one.
        if let Some((sender, stream)) = self.place(fresh) {
            return Ok(Lease::new(Sender::Http2 { sender, _stream: stream }, load, true));
        }
        let sender = http2(dial().await?).await?;
        let streams = Arc::new(AtomicUsize::new(0));
        let stream = Stream::begin(&streams);
        self.multiplexed.lock().push(Multiplexed { sender: sender.clone(), streams, used: Instant::now() });
        Ok(Lease::new(Sender::Http2 { sender, _stream: stream }, load, false))
    }

    pub(super) fn count(&self) -> usize {
        self.idle.count() + self.multiplexed.lock().len()
    }

    /// Whether a request has an HTTP/1 connection that may come back.
    pub(super) fn is_lent(&self) -> bool {
        Arc::strong_count(&self.idle) > 1
    }

    pub(super) fn close_unused(&self) {
        self.idle.close_unused();
        self.multiplexed.lock().retain(|it| {
            let in_use = it.streams.load(Ordering::Relaxed) > 0 || it.used.elapsed() < idle::TIME;
            !it.sender.is_closed() && in_use
        });
    }

    /// A place on the least used connection, unless another should be made.
    fn place(&self, fresh: bool) -> Option<(http2::SendRequest<RequestBody>, Stream)> {
        let mut all = self.multiplexed.lock();
        all.retain(|it| !it.sender.is_closed());
        let spread = all.len() >= SPREAD_OVER;
        let least = all.iter_mut().min_by_key(|it| it.streams.load(Ordering::Relaxed))?;
        let streams = least.streams.load(Ordering::Relaxed);
        let most = if spread { STREAMS } else { SPREAD };
        if fresh || streams >= most {
            return None;
        }
        least.used = Instant::now();
        Some((least.sender.clone(), Stream::begin(&least.streams)))
    }
}

async fn http1(stream: Uplink) -> Result<http1::SendRequest<RequestBody>, Failure> {
    let handshake = http1::Builder::new()
        .max_header_size(HEAD as usize)
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(stream));
    let (sender, connection) = handshake.await.map_err(|error| failed(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(error = ambit_core::chain(&error), "HTTP/1 connection to an endpoint ended");
        }
    });
    Ok(sender)
}

async fn http2(stream: Uplink) -> Result<http2::SendRequest<RequestBody>, Failure> {
    let handshake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD)
        .max_send_buf_size(BUFFER)
        .handshake(TokioIo::new(stream));
    let (sender, connection) = handshake.await.map_err(|error| failed(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = ambit_core::chain(&error), "HTTP/2 connection to an endpoint ended");
        }
    });
    Ok(sender)
}

fn failed(error: &hyper::Error) -> Failure {
    let error = format!("failed to begin HTTP: {}", ambit_core::chain(error));
    Failure { ending: ending::unmade(Reason::ConnectFailed, error), elsewhere: true }
}
