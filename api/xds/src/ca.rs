//! Certificate signing, both sides of `IstioCertificateService`: [`Client`] and [`SignCertificate`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::model::Identity;
use parking_lot::Mutex;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::sync::Semaphore;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::Error;
use crate::auth::{Authenticate, Caller, NodeName, bearer};
use crate::client::{Connection, Credentials};
use crate::proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use crate::proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

/// The metadata key that names the workload; without it a certificate of the token's own identity is meant.
const IDENTITY: &str = "ImpersonatedIdentity";
/// The validity of a certificate whose request names none.
const DEFAULT_TTL: Duration = Duration::from_hours(24);
/// A certificate request is some hundred bytes.
const MAX_REQUEST: usize = 64 * 1024;
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Signs certificates.
pub trait SignCertificate: Send + Sync + 'static {
    /// Signs the key of `csr_pem`, if `caller` may have a certificate for the identity that its request
    /// names, or for its own ([`Caller::meant`]). Returns the chain as PEMs, leaf first and root last.
    fn sign(
        &self,
        caller: &Caller,
        named: Option<&Identity>,
        csr_pem: &str,
        ttl: Duration,
    ) -> Result<Vec<String>, Refusal>;
}

/// Why a certificate is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The caller may not have that identity. The daemon sees `PERMISSION_DENIED`.
    #[error("{0}")]
    Denied(String),
    /// The request is invalid. The daemon sees `INVALID_ARGUMENT`.
    #[error("{0}")]
    Invalid(String),
    /// The CA cannot sign now. The daemon sees `UNAVAILABLE`.
    #[error("{0}")]
    Unavailable(String),
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Denied(message) => Self::permission_denied(message),
            Refusal::Invalid(message) => Self::invalid_argument(message),
            Refusal::Unavailable(message) => Self::unavailable(message),
        }
    }
}

/// Requests certificates from the controller's CA. Clones share the connection, which is made when it is
/// needed, and again when the controller's endpoint or roots have changed.
#[derive(Clone)]
pub struct Client {
    credentials: Arc<dyn Credentials>,
    current: Arc<Mutex<(Connection, Channel)>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("connection", &self.current.lock().0).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the controller that `credentials` name. Must be called within a tokio runtime.
    pub fn new(credentials: impl Credentials) -> Result<Self, Error> {
        let connection = credentials.connection()?;
        let channel = connection.endpoint()?.connect_lazy();
        let current = Arc::new(Mutex::new((connection, channel)));
        Ok(Self { credentials: Arc::new(credentials), current })
    }

    /// The current connection settings, and a channel for them.
    fn current(&self) -> Result<(Connection, Channel), Error> {
        let now = self.credentials.connection()?;
        let mut current = self.current.lock();
        if now.root_pem != current.0.root_pem || now.endpoint != current.0.endpoint {
            current.1 = now.endpoint()?.connect_lazy();
        }
        current.0 = now;
        Ok(current.clone())
    }

    /// Requests a certificate for `identity` and the key of `csr_pem`. Returns the chain as PEMs, leaf first
    /// and root last.
    pub async fn create_certificate(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Duration,
    ) -> Result<Vec<String>, Error> {
        let (connection, channel) = self.current()?;
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonate(identity)),
        });
        request.set_timeout(CALL_DEADLINE);
        connection.authorize(request.metadata_mut())?;
        // The request's own deadline is the server's to keep; this one holds if no server is reached.
        let mut calls = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_REQUEST);
        let answer = tokio::time::timeout(CALL_DEADLINE, calls.create_certificate(request)).await;
        let chain = match answer {
            Ok(Ok(response)) => response.into_inner().cert_chain,
            Ok(Err(status)) => {
                return Err(Error::CreateCertificate {
                    identity: identity.clone(),
                    source: Box::new(status),
                });
            }
            Err(_) => {
                let status = Status::deadline_exceeded("the controller did not answer");
                return Err(Error::CreateCertificate {
                    identity: identity.clone(),
                    source: Box::new(status),
                });
            }
        };
        if chain.is_empty() {
            return Err(Error::EmptyChain { identity: identity.clone() });
        }
        Ok(chain)
    }
}

fn impersonate(identity: &Identity) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    Struct { fields: BTreeMap::from([(IDENTITY.to_owned(), value)]) }
}

/// The service that signs with `signer` for nodes that `authenticate` accepts.
pub(crate) fn service(
    authenticate: Arc<dyn Authenticate>,
    signer: Arc<dyn SignCertificate>,
) -> IstioCertificateServiceServer<Ca> {
    let turns = Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));
    IstioCertificateServiceServer::new(Ca { authenticate, signer, turns })
        .max_decoding_message_size(MAX_REQUEST)
}

pub(crate) struct Ca {
    authenticate: Arc<dyn Authenticate>,
    signer: Arc<dyn SignCertificate>,
    /// As many sign at the same time as there are processors.
    turns: Arc<Semaphore>,
}

impl Ca {
    /// Signs on a thread for blocking work: with an RSA key a signature takes milliseconds, in which the
    /// workers would renew no lease and send no configuration.
    async fn sign(
        &self,
        caller: Caller,
        named: Option<Identity>,
        csr: String,
        ttl: Duration,
    ) -> Result<Vec<String>, Refusal> {
        let stopped = |what: &str| Refusal::Unavailable(format!("failed to sign: {what}"));
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|_| stopped("the controller is stopping"))?;
        let signer = self.signer.clone();
        let signed = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            signer.sign(&caller, named.as_ref(), &csr, ttl)
        });
        signed.await.unwrap_or_else(|_| Err(stopped("the signer has failed")))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = self.authenticate.caller(bearer(request.metadata())?).await?;
        let request = request.into_inner();
        let named = named(&request)?;
        let ttl = match u64::try_from(request.validity_duration) {
            Ok(0) => DEFAULT_TTL,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(Status::invalid_argument("validity_duration is negative")),
        };
        let node = caller.node().clone();
        match self.sign(caller, named, request.csr, ttl).await {
            Ok(cert_chain) => Ok(Response::new(IstioCertificateResponse { cert_chain })),
            Err(refusal) => {
                tracing::warn!(%node, %refusal, "certificate request refused");
                Err(refusal.into())
            }
        }
    }
}

/// The identity that a request names, if it names one. As for Istio, an empty name is none.
fn named(request: &IstioCertificateRequest) -> Result<Option<Identity>, Status> {
    let value = request.metadata.as_ref().and_then(|metadata| metadata.fields.get(IDENTITY));
    match value.map(|value| value.kind.as_ref()) {
        None => Ok(None),
        Some(Some(Kind::StringValue(text))) if text.is_empty() => Ok(None),
        Some(Some(Kind::StringValue(text))) => {
            let wrong = |error| Status::invalid_argument(format!("metadata.{IDENTITY}: {error}"));
            text.parse().map(Some).map_err(wrong)
        }
        Some(_) => Err(Status::invalid_argument(format!("metadata.{IDENTITY} does not name an identity"))),
    }
}

impl Caller {
    /// Whose certificate is meant, and the node that it must run on: the one that a daemon names, else the
    /// caller's own.
    pub fn meant(&self, named: Option<&Identity>) -> Result<(&NodeName, Identity), Refusal> {
        match (self, named) {
            (Self::Daemon { node, .. }, Some(identity))
            | (Self::Daemon { node, own: Some(identity) } | Self::Workload { node, own: identity }, None) => {
                Ok((node, identity.clone()))
            }
            (Self::Daemon { own: None, .. }, None) => Err(Refusal::Invalid(format!(
                "metadata.{IDENTITY} does not name an identity, and the token proves none"
            ))),
            (Self::Workload { node, own }, Some(identity)) if own == identity => Ok((node, own.clone())),
            (Self::Workload { own, .. }, Some(identity)) => Err(Refusal::Denied(format!(
                "only a node's daemon may name an identity: {own} may not ask for {identity}"
            ))),
        }
    }
}
