//! How the controller is reached and authenticated: [`Connection`], and [`Credentials`] that give it.

use std::fmt;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A controller that is silent for this long gets a ping. gRPC servers may end connections that ping more
/// often (Istio's control plane: than every 15 s).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How a daemon connects to its controller.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    /// `https://host:port`
    pub endpoint: String,
    /// The name in the controller's certificate.
    pub server_name: String,
    /// The roots of the controller's certificate, PEM.
    pub root_pem: String,
    /// The daemon's bearer token.
    pub token: String,
    /// The node the daemon is on.
    pub node: String,
}

/// Gives the current [`Connection`], for every connection and every call: tokens and roots are rotated while
/// a daemon runs. A [`Connection`] is its own constant credentials.
pub trait Credentials: Send + Sync + 'static {
    /// The current connection settings.
    fn connection(&self) -> Result<Connection, Error>;
}

impl Credentials for Connection {
    fn connection(&self) -> Result<Connection, Error> {
        Ok(self.clone())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("endpoint", &self.endpoint)
            .field("server_name", &self.server_name)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// An endpoint that trusts only these roots, with keepalives.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, Error> {
        // Without a root every handshake would fail, with a less clear error.
        if !self.root_pem.contains("-----BEGIN CERTIFICATE-----") {
            return Err(Error::NoRoot);
        }
        let unusable = |source| Error::Endpoint { endpoint: self.endpoint.clone(), source };
        // Set explicitly, so that another crate's feature cannot change the cryptography provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.root_pem))
            .domain_name(&self.server_name)
            .timeout(CONNECT_TIMEOUT);
        Endpoint::from_shared(self.endpoint.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map(|endpoint| {
                endpoint
                    .connect_timeout(CONNECT_TIMEOUT)
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                    .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                    .keep_alive_while_idle(true)
            })
            .map_err(unusable)
    }

    pub(crate) fn check_token(&self) -> Result<(), Error> {
        self.bearer().map(drop)
    }

    /// Adds the credential to a request.
    pub(crate) fn authorize(&self, metadata: &mut MetadataMap) -> Result<(), Error> {
        metadata.insert("authorization", self.bearer()?);
        Ok(())
    }

    fn bearer(&self) -> Result<MetadataValue<Ascii>, Error> {
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", self.token).parse().map_err(|_| Error::Token)?;
        value.set_sensitive(true);
        Ok(value)
    }
}
