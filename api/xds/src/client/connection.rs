//! How the controller is reached, trusted and spoken to: [`Connection`], and [`Credentials`] where it comes
//! from.

use std::fmt;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A controller that is silent for an interval gets a ping; one that does not answer it in time is gone. Some
/// gRPC servers (Istio's control plane) end connections that ping more often than every 15 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a daemon needs to know of its controller.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    /// `https://host:port`
    pub endpoint: String,
    /// The name in the controller's certificate.
    pub server_name: String,
    /// The roots that may vouch for it, PEM.
    pub root_pem: String,
    /// The daemon's own credential.
    pub token: String,
    /// The node the daemon is on.
    pub node: String,
}

/// Where the way to the controller is asked for, anew for every connection and every call: tokens and roots
/// are replaced while a daemon runs. A [`Connection`] is the one that never changes.
pub trait Credentials: Send + Sync + 'static {
    /// What is to be used now.
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
    /// An endpoint that trusts only the given roots, and notices when the controller is gone.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, Error> {
        // Without a root every handshake would fail, for a reason that is harder to find.
        if !self.root_pem.contains("-----BEGIN CERTIFICATE-----") {
            return Err(Error::NoRoot);
        }
        let unusable = |source| Error::Endpoint { endpoint: self.endpoint.clone(), source };
        // Said here although tonic would take it: another crate's feature must not change who does the
        // cryptography.
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
