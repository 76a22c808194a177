//! HBONE: TCP connections as HTTP/2 `CONNECT` streams over mutual TLS 1.3.
//!
//! Entry points: [`pool::Pool::open`] (client), [`server::Server::serve`] (server), [`Tunnel`] (an open
//! stream, read and written like any other), and [`relay`] (bytes between two streams).
#![warn(missing_docs)]

pub mod client;
mod clock;
mod error;
mod http2;
mod keepalive;
pub mod memory;
pub mod pool;
mod readahead;
pub mod relay;
pub mod request;
mod scratch;
pub mod server;
pub mod tls;
mod tunnel;

pub use error::Error;
pub use http2::Http2;
pub use tunnel::Tunnel;
