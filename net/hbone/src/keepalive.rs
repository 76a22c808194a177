//! Notices dead peers: HTTP/2 pings at an interval, each answered in time or the connection is given up.
//!
//! Entry point: [`keep_alive`].

use std::future::pending;

use h2::{Ping, PingPong};

use crate::{Error, Http2};

/// Pings until an answer is missing. The connection must be polled beside it.
pub(crate) async fn keep_alive(pings: Option<PingPong>, http2: &Http2) -> Error {
    let Some(mut pings) = pings else { return pending().await };
    loop {
        tokio::time::sleep(http2.ping_interval).await;
        match tokio::time::timeout(http2.ping_timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_pong)) => {}
            // The connection itself says better what happened to it.
            Ok(Err(_closed)) => return pending().await,
            Err(_elapsed) => return Error::PingTimeout { timeout: http2.ping_timeout },
        }
    }
}
