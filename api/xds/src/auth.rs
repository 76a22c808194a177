//! The authentication of nodes, and of workloads that ask for their own certificates, by the bearer tokens of
//! their requests.

use std::fmt;
use std::sync::Arc;

use ambit_core::model::Identity;
use tonic::metadata::MetadataMap;
use tonic::{Status, async_trait};

/// The name of a node, from its token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The node called `name`.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a caller is not authenticated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// The token is invalid. The daemon sees `UNAUTHENTICATED`.
    #[error("{0}")]
    Refused(String),
    /// The token cannot be checked now. The daemon sees `UNAVAILABLE` and tries again.
    #[error("{0}")]
    Unavailable(String),
}

impl From<Unauthenticated> for Status {
    fn from(reason: Unauthenticated) -> Self {
        match reason {
            Unauthenticated::Refused(message) => Self::unauthenticated(message),
            Unauthenticated::Unavailable(message) => Self::unavailable(message),
        }
    }
}

/// Who asks for a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A node's daemon: it may name an identity of the node's workloads.
    Daemon {
        /// Its node.
        node: NodeName,
        /// Its own identity, if its token proves one.
        own: Option<Identity>,
    },
    /// A workload with a token of its own service account: it gets its own identity, and names none.
    Workload {
        /// Where it runs.
        node: NodeName,
        /// Its own identity.
        own: Identity,
    },
}

impl Caller {
    /// Where it runs.
    pub fn node(&self) -> &NodeName {
        match self {
            Self::Daemon { node, .. } | Self::Workload { node, .. } => node,
        }
    }
}

/// Authenticates tokens.
#[async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// The node of a daemon's token.
    async fn node(&self, bearer: &str) -> Result<NodeName, Unauthenticated>;

    /// Under which name whose token it is may get configuration: daemons under their nodes', and waypoints
    /// with tokens of their own, where there are such, each under one of its own.
    async fn subscriber(&self, bearer: &str) -> Result<NodeName, Unauthenticated> {
        self.node(bearer).await
    }

    /// Whose token it is. Where only daemons have tokens, and these prove no identity, it is the node's.
    async fn caller(&self, bearer: &str) -> Result<Caller, Unauthenticated> {
        Ok(Caller::Daemon { node: self.node(bearer).await?, own: None })
    }
}

/// The bearer token of a request, or the status of the refusal.
pub(crate) fn bearer(metadata: &MetadataMap) -> Result<&str, Status> {
    let header =
        metadata.get("authorization").ok_or_else(|| Status::unauthenticated("no authorization header"))?;
    let bearer = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
    bearer.ok_or_else(|| Status::unauthenticated("authorization is not a bearer token"))
}
