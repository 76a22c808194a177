//! The authentication of nodes by the bearer tokens of their requests.

use std::fmt;
use std::sync::Arc;

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

/// Authenticates tokens.
#[async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// The node of the token.
    async fn node(&self, bearer: &str) -> Result<NodeName, Unauthenticated>;
}

/// The node of a request, or the status of the refusal.
pub(crate) async fn authenticate(
    with: &dyn Authenticate,
    metadata: &MetadataMap,
) -> Result<NodeName, Status> {
    let header =
        metadata.get("authorization").ok_or_else(|| Status::unauthenticated("no authorization header"))?;
    let bearer = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
    let bearer = bearer.ok_or_else(|| Status::unauthenticated("authorization is not a bearer token"))?;
    Ok(with.node(bearer).await?)
}
