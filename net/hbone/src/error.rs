//! What can go wrong with a tunnel, each by operation and object: [`Error`].

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ambit_core::model::Identity;
use h2::Reason;
use http::StatusCode;

use crate::tls::name::NameError;

/// Why a tunnel, or the connection under it, failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A workload's certificate chain is not PEM.
    #[error("failed to parse certificate chain of {identity}")]
    ParseChain {
        /// The workload's identity.
        identity: Identity,
        /// What is wrong with the PEM.
        source: rustls_pki_types::pem::Error,
    },
    /// A workload's certificate chain lacks its leaf or its root.
    #[error(
        "failed to load certificate of {identity}: \
         chain has {length} certificates, need at least leaf and root"
    )]
    ShortChain {
        /// The workload's identity.
        identity: Identity,
        /// How many certificates there are.
        length: usize,
    },
    /// TLS does not take a workload's certificate, key or root.
    #[error("failed to load certificate of {identity}")]
    LoadCertificate {
        /// The workload's identity.
        identity: Identity,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The TLS handshake, or the TCP connection under it, failed.
    #[error("failed to complete TLS handshake")]
    Handshake {
        /// What went wrong.
        source: io::Error,
    },
    /// The peer took too long over the TLS handshake.
    #[error("failed to complete TLS handshake within {timeout:?}")]
    HandshakeTimeout {
        /// How long it had.
        timeout: Duration,
    },
    /// The server cut this handshake off to make room for others.
    #[error("failed to complete TLS handshake: too many are in progress")]
    TooManyHandshakes,
    /// The client, or all clients of the workload, have too many connections.
    #[error("failed to accept connection from {address}: too many connections to the workload")]
    TooManyConnections {
        /// The client's address.
        address: SocketAddr,
    },
    /// A client's certificate expired while its connection was open.
    #[error("failed to keep connection open: certificate of {identity} has expired")]
    CertificateExpired {
        /// The client's identity.
        identity: Identity,
    },
    /// The peer did not negotiate HTTP/2 by ALPN.
    #[error("failed to negotiate HTTP/2 with peer")]
    NoAlpn,
    /// The peer's certificate is not a workload's.
    #[error("failed to identify peer")]
    PeerIdentity {
        /// What is wrong with the certificate's name.
        source: NameError,
    },
    /// The HTTP/2 connection failed.
    #[error("failed to drive HTTP/2 connection")]
    Connection {
        /// What went wrong.
        source: h2::Error,
    },
    /// The peer is dead or unreachable.
    #[error("failed to keep connection open: no answer to ping within {timeout:?}")]
    PingTimeout {
        /// How long it had.
        timeout: Duration,
    },
    /// The connection is closed to new tunnels.
    #[error("failed to open tunnel: connection takes no more tunnels")]
    ConnectionClosed,
    /// The peer answered the request with an error status.
    #[error("failed to open tunnel: refused by peer with status {status}")]
    Refused {
        /// The peer's answer.
        status: StatusCode,
    },
    /// The tunnel's HTTP/2 stream failed before it was open.
    #[error("failed to open tunnel")]
    Stream {
        /// What went wrong.
        source: h2::Error,
    },
    /// The authority to connect to cannot be written in a request.
    #[error("failed to open tunnel: {authority:?} is not a valid authority")]
    Authority {
        /// The authority asked for.
        authority: String,
    },
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
