//! HTTP on a client's tunnel: [`http1`] and [`http2`] give each request to [`request::serve`].

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::delimited::Delimited;
use crate::downstream::Downstream;
use crate::request;
use crate::stream::{Downlink, Guarded, Patience};

/// What is read ahead of a body's reader, and what may wait to be written.
const BUFFER: usize = 128 << 10;
/// Receive window of one request's body.
const STREAM_WINDOW: u32 = 256 << 10;
/// Of all bodies on one connection.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Headers of one request.
const HEADERS: usize = 128;

/// Serves HTTP/1 until the client or the drain ends it.
///
/// A draining waypoint answers with `Connection: close`; connections without a request are closed only after
/// a grace period, so that a request that is on its way is not lost.
pub(crate) async fn http1<L>(downstream: Arc<Downstream>, link: L)
where
    L: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let waypoint = downstream.worker.waypoint.clone();
    let (limits, drain) = (waypoint.limits, &waypoint.proxy.drain);
    let patience = Patience { head: limits.head, idle: limits.idle };
    // Around it, since what is left when the connection ends is nobody's to check.
    let guarded = Guarded::new(link, downstream.clone(), patience);
    let io = TokioIo::new(Delimited::new(guarded, downstream.clone()));
    let service = service_fn(move |request| {
        let downstream = downstream.clone();
        async move { Ok::<_, Infallible>(request::serve(downstream, request).await) }
    });
    // Without a timer: hyper would set one for each request, and [`Guarded`] has one.
    let connection = http1::Builder::new()
        // A client may end its side after its request, as it may without a waypoint.
        .half_close(true)
        .max_header_size(limits.head_bytes as usize)
        .max_headers(HEADERS)
        .max_buf_size(BUFFER)
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let grace = async {
        drain.started().await;
        tokio::time::sleep(limits.drain_grace).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = grace => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = ambit_core::chain(&error), "HTTP/1 connection ended");
    }
}

/// Serves HTTP/2 until the client or the drain ends it: a draining waypoint sends GOAWAY, and the client
/// opens another connection for its next request.
pub(crate) async fn http2(downstream: Arc<Downstream>, link: Downlink) {
    let waypoint = downstream.worker.waypoint.clone();
    let (limits, drain) = (waypoint.limits, &waypoint.proxy.drain);
    let service = service_fn(move |request| {
        let downstream = downstream.clone();
        async move { Ok::<_, Infallible>(request::serve(downstream, request).await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(limits.head_bytes)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER)
        .serve_connection(TokioIo::new(link), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.started() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = ambit_core::chain(&error), "HTTP/2 connection ended");
    }
}
