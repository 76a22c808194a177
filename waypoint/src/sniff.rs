//! What a client speaks: [`http_version`] where it must be HTTP, [`sniff`] where it may be anything,
//! [`client_hello`] where it must be TLS.

use std::io;
use std::time::Duration;

use ambit_core::protocol::{self, HELLO_LIMIT, Hello, SNIFFED, Sniffed};
use ambit_hbone::Tunnel;
use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout_at};

use crate::stream::{Downlink, Patience};

/// Which HTTP it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    Http1,
    Http2,
}

/// The version of a client that must speak HTTP. What is neither is left to HTTP/1, which refuses it. `None`:
/// it sent nothing at all.
pub(crate) async fn http_version(
    mut tunnel: Tunnel,
    patience: Patience,
) -> io::Result<Option<(HttpVersion, Downlink)>> {
    let mut first = BytesMut::with_capacity(SNIFFED);
    let mut until = Instant::now() + patience.idle;
    let version = loop {
        match protocol::sniff(&first) {
            Sniffed::Http2 => break HttpVersion::Http2,
            // Only what may become the preface is waited for: anything else is HTTP/1's to read.
            _ if protocol::may_become_http2(&first) => {}
            _ => break HttpVersion::Http1,
        }
        let had_none = first.is_empty();
        match timeout_at(until, tunnel.read_buf(&mut first)).await {
            Ok(read) => {
                if read? == 0 {
                    if first.is_empty() {
                        return Ok(None);
                    }
                    break HttpVersion::Http1;
                }
                if had_none {
                    until = Instant::now() + patience.head;
                }
            }
            Err(_) => return Ok(None),
        }
    };
    Ok(Some((version, Downlink::new(first.freeze(), tunnel))))
}

/// What a client speaks that may speak anything. One that says nothing, or not enough, within the limit waits
/// for the server to begin: that is TCP.
pub(crate) async fn sniff(mut tunnel: Tunnel, limit: Duration) -> io::Result<(Sniffed, Downlink)> {
    let mut first = BytesMut::with_capacity(SNIFFED);
    let until = Instant::now() + limit;
    let sniffed = loop {
        match protocol::sniff(&first) {
            Sniffed::Undecided => {}
            decided => break decided,
        }
        match timeout_at(until, tunnel.read_buf(&mut first)).await {
            Ok(read) => {
                if read? == 0 {
                    break Sniffed::Tcp;
                }
            }
            Err(_) => break Sniffed::Tcp,
        }
    };
    Ok((sniffed, Downlink::new(first.freeze(), tunnel)))
}

/// The server name of a client that must speak TLS, which the client begins. `None`: it does not within the
/// limit.
pub(crate) async fn client_hello(
    mut tunnel: Tunnel,
    limit: Duration,
) -> io::Result<Option<(Option<String>, Downlink)>> {
    let mut first = BytesMut::with_capacity(SNIFFED);
    let until = Instant::now() + limit;
    loop {
        match protocol::hello(&first) {
            Hello::Client { server_name } => {
                return Ok(Some((server_name, Downlink::new(first.freeze(), tunnel))));
            }
            Hello::NotTls => return Ok(None),
            Hello::Incomplete => first.reserve(HELLO_LIMIT.saturating_sub(first.len()).clamp(1, SNIFFED)),
        }
        match timeout_at(until, tunnel.read_buf(&mut first)).await {
            Ok(read) => {
                if read? == 0 {
                    // One that says nothing wants nothing: a probe.
                    let silent = first.is_empty();
                    return if silent { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
                }
            }
            Err(_) => return Ok(None),
        }
    }
}
