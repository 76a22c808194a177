//! What can go wrong at either end, outside of a single resource (that is
//! [`DecodeError`](crate::convert::DecodeError)).

/// Why a connection, a call or a server did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The controller's address in the bootstrap file is unusable.
    #[error("use controller endpoint {endpoint:?}")]
    Endpoint {
        endpoint: String,
        #[source]
        source: tonic::transport::Error,
    },
    /// What it takes to reach the controller could not be read; it may be there the next time.
    #[error("read what it takes to reach the controller")]
    Credentials {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The root certificates that should vouch for the controller hold none.
    #[error("read root certificates: no certificate in the PEM text")]
    NoRoot,
    /// The token cannot stand in a header.
    #[error("use token: it has characters that a header cannot carry")]
    Token,
    /// The server's certificate or key is unusable.
    #[error("read server certificate")]
    ServerPem(#[source] rustls::pki_types::pem::Error),
    /// The server's certificate and key do not belong together, or are of an unknown kind.
    #[error("use server certificate")]
    ServerTls(#[source] rustls::Error),
    /// The server ended.
    #[error("serve xDS")]
    Serve(#[source] tonic::transport::Error),
    /// A certificate request did not succeed.
    #[error("create certificate for {identity}")]
    CreateCertificate {
        identity: ambit_core::model::Identity,
        #[source]
        source: Box<tonic::Status>,
    },
    /// The CA's answer holds no certificate.
    #[error("create certificate for {identity}: the answer holds no certificate")]
    EmptyChain { identity: ambit_core::model::Identity },
}
