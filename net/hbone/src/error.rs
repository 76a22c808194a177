//! What can go wrong with a tunnel, each by operation and object.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ambit_core::model::Identity;
use h2::Reason;
use http::StatusCode;

/// Why a tunnel, or the connection under it, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the certificate chain of {identity} is not PEM")]
    ReadChain { identity: Identity, source: rustls_pki_types::pem::Error },
    #[error("the certificate chain of {identity} is a leaf and a root at least, not {length} certificates")]
    ShortChain { identity: Identity, length: usize },
    #[error("the certificate of {identity} cannot be used")]
    UseCertificate { identity: Identity, source: rustls::Error },
    #[error("TLS handshake")]
    Handshake { source: io::Error },
    #[error("TLS handshake was not finished within {timeout:?}")]
    HandshakeTimeout { timeout: Duration },
    #[error("too many TLS handshakes are under way")]
    TooManyHandshakes,
    #[error("{address} has too many connections, or there are too many to the workload")]
    TooManyConnections { address: SocketAddr },
    #[error("the certificate of {identity} has expired")]
    CertificateExpired { identity: Identity },
    #[error("the peer did not agree to speak HTTP/2")]
    NoAlpn,
    #[error("the peer's certificate names no identity")]
    PeerIdentity { source: crate::tls::NameError },
    #[error("HTTP/2 connection")]
    Connection { source: h2::Error },
    #[error("the peer did not answer a ping within {timeout:?}")]
    PingTimeout { timeout: Duration },
    #[error("the connection takes no more tunnels")]
    ConnectionClosed,
    #[error("the peer refused the tunnel: {status}")]
    Refused { status: StatusCode },
    #[error("HTTP/2 stream")]
    Stream { source: h2::Error },
    #[error("{authority:?} is not an authority that a tunnel can be asked for")]
    Authority { authority: String },
}

impl Error {
    /// Whether the peer refused before it looked at the request: it may be asked again.
    pub fn is_unprocessed(&self) -> bool {
        match self {
            Self::ConnectionClosed => true,
            Self::Stream { source } => {
                let refused = source.is_reset() && source.reason() == Some(Reason::REFUSED_STREAM);
                source.is_remote() && (source.is_go_away() || refused)
            }
            _ => false,
        }
    }

    /// Whether the connection broke before there was an answer.
    pub fn is_broken(&self) -> bool {
        matches!(self, Self::Stream { source } if !source.is_reset())
    }

    /// The error with its causes, for one line of a log.
    pub fn chain(&self) -> String {
        ambit_core::chain(self)
    }
}
