//! The controller's end: a [`Publisher`] that holds what every daemon should know, and [`Server::serve`],
//! which answers delta xDS and certificate requests over TLS.
//!
//! Each stream is a [`session::Session`], a pure state machine between requests and the [`store::Store`].

mod accept;
mod publisher;
mod reply;
mod service;
mod session;
#[cfg(test)]
mod session_tests;
mod store;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;

pub use crate::auth::{Authenticate, NodeName, Unauthenticated};
pub use accept::tls_config;
pub use publisher::{Publisher, Stats};

use crate::Error;
use crate::ca::{self, SignCertificate};

/// A daemon that does not answer a ping for this long is gone.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long streams have to end when the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// Streams one connection may have open: one for configuration, and certificates being asked for.
const STREAMS_PER_CONNECTION: u32 = 64;

/// What is served, and to whom.
#[derive(Clone)]
pub struct Server {
    /// The configuration.
    pub publisher: Publisher,
    /// Which node a token stands for.
    pub authenticate: Arc<dyn Authenticate>,
    /// The CA.
    pub signer: Arc<dyn SignCertificate>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("publisher", &self.publisher).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves until `shutdown` resolves; then ends the streams and returns. For `tls` see [`tls_config`].
    pub async fn serve(
        self,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), Error> {
        let (stopping, stopped) = watch::channel(false);
        let connections = ReceiverStream::new(accept::connections(listener, tls));
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .http2_max_header_list_size(16 * 1024)
            .add_service(service::discovery(self.publisher, self.authenticate.clone(), stopped.clone()))
            .add_service(ca::service(self.authenticate, self.signer))
            .serve_with_incoming_shutdown(connections, wait_for(stopped));
        tokio::pin!(served);
        tokio::select! {
            result = &mut served => return result.map_err(Error::Serve),
            () = shutdown => stopping.send_replace(true),
        };
        // A peer that never closes its connection must not keep the controller from stopping.
        tokio::time::timeout(GRACE, served).await.unwrap_or(Ok(())).map_err(Error::Serve)
    }
}

/// Resolves when the flag is set, or nobody can set it any more.
async fn wait_for(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}
