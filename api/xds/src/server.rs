//! The controller's side: a [`Publisher`] with the resources of all daemons, and [`Server::serve`], which
//! serves delta xDS and certificate signing over TLS.
//!
//! Each stream has a [`session::Session`], a pure state machine that reads the [`store::Store`].

mod accept;
mod intake;
mod publisher;
mod reply;
mod service;
mod session;
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

/// The interval of pings, and the deadline of their responses.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// The time that streams have to end when the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// How long a stream lasts at most, unless configured: Istio's default. Clients come back to any replica, so
/// replicas balance after one of them has been replaced.
pub const MAX_AGE: Duration = Duration::from_mins(30);
/// The windows of HTTP/2: the most unread bytes of a stream's requests, and of a whole connection.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// The most streams of one connection: one for xDS, the others for certificate requests.
const STREAMS_PER_CONNECTION: u32 = 64;

/// The controller's server.
#[derive(Clone)]
pub struct Server {
    /// The resources.
    pub publisher: Publisher,
    /// Authenticates nodes by their tokens.
    pub authenticate: Arc<dyn Authenticate>,
    /// The CA.
    pub signer: Arc<dyn SignCertificate>,
    /// The longest that a configuration stream lasts; each lasts between half of it and the whole.
    pub max_age: Duration,
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
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_header_list_size(16 * 1024)
            .add_service(service::discovery(
                self.publisher,
                self.authenticate.clone(),
                stopped.clone(),
                self.max_age,
            ))
            .add_service(ca::service(self.authenticate, self.signer))
            .serve_with_incoming_shutdown(connections, wait_for(stopped));
        tokio::pin!(served);
        tokio::select! {
            result = &mut served => return result.map_err(Error::Serve),
            () = shutdown => stopping.send_replace(true),
        };
        // A peer that does not close its connection must not prevent the stop.
        tokio::time::timeout(GRACE, served).await.unwrap_or(Ok(())).map_err(Error::Serve)
    }
}

/// Resolves when the flag is set or its sender is dropped.
async fn wait_for(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}
