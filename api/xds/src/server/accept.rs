//! Accepts connections, bounded in number, and completes their TLS handshakes within a deadline.
//!
//! tonic's own accept loop ends at transient errors (such as EMFILE), and its handshakes are not bounded.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::Error;

/// The most connections, including those in their handshake. Others wait in the listener's queue.
const MAX_CONNECTIONS: usize = 8_192;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// The pause after an error of accepting.
const PAUSE: Duration = Duration::from_millis(100);

/// A TLS 1.3 configuration for [`Server::serve`](super::Server::serve), from the PEMs of the server's chain
/// (leaf first) and key.
pub fn tls_config(chain_pem: &str, key_pem: &str) -> Result<Arc<ServerConfig>, Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(Error::ServerPem)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(Error::ServerTls)?
        .with_no_client_auth()
        .with_single_cert(chain.map_err(Error::ServerPem)?, key)
        .map_err(Error::ServerTls)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Accepts for as long as the receiver lives.
pub(super) fn connections(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
) -> mpsc::Receiver<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let accept = async {
            loop {
                let Ok(permit) = permits.clone().acquire_owned().await else { return };
                match listener.accept().await {
                    Ok((socket, _)) => {
                        tokio::spawn(handshake(
                            socket,
                            TlsAcceptor::from(tls.clone()),
                            permit,
                            sender.clone(),
                        ));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "failed to accept xDS connection");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = sender.closed() => {}
        }
    });
    receiver
}

async fn handshake(
    socket: TcpStream,
    tls: TlsAcceptor,
    permit: OwnedSemaphorePermit,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    let peer = socket.peer_addr().ok();
    let _ = socket.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_DEADLINE, tls.accept(socket)).await {
        Ok(Ok(stream)) => {
            let _ = sender.send(Ok(Connection { stream, _permit: permit })).await;
        }
        Ok(Err(error)) => tracing::debug!(?peer, %error, "failed TLS handshake of an xDS connection"),
        Err(_) => tracing::debug!(?peer, "TLS handshake of xDS connection timed out"),
    }
}

/// A connection after its handshake, with its permit of [`MAX_CONNECTIONS`].
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
