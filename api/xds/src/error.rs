//! Errors of either side. Those of a single resource are [`DecodeError`](crate::convert::DecodeError)s.

/// Why a connection, a call or the server failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The controller's address is not usable.
    #[error("failed to use controller endpoint {endpoint:?}")]
    Endpoint {
        /// From the configuration.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// The token or the roots could not be read. They may be there at the next attempt.
    #[error("failed to read controller credentials")]
    Credentials {
        /// Usually an I/O error with the file's path.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The controller's root certificates are empty.
    #[error("failed to read root certificates: no certificate in the PEM text")]
    NoRoot,
    /// The token has characters that are not allowed in a header.
    #[error("failed to use token: it has characters that a header cannot carry")]
    Token,
    /// The server's certificate or key cannot be parsed.
    #[error("failed to read server certificate")]
    ServerPem(#[source] rustls::pki_types::pem::Error),
    /// The server's certificate and key do not match, or are of an unknown kind.
    #[error("failed to use server certificate")]
    ServerTls(#[source] rustls::Error),
    /// The server ended.
    #[error("failed to serve xDS")]
    Serve(#[source] tonic::transport::Error),
    /// A certificate request failed.
    #[error("failed to create certificate for {identity}")]
    CreateCertificate {
        /// The requested identity.
        identity: ambit_core::model::Identity,
        /// The status of the call.
        #[source]
        source: Box<tonic::Status>,
    },
    /// The CA's response has no certificate.
    #[error("failed to create certificate for {identity}: the response has no certificate")]
    EmptyChain {
        /// The requested identity.
        identity: ambit_core::model::Identity,
    },
}
