//! The CA as certificates see it: [`Signer`].

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use ambit_core::model::Identity;
use futures::future::BoxFuture;

/// Signs requests: the controller's CA, or a script in tests.
pub trait Signer: Send + Sync + 'static {
    /// Why it refused or failed.
    type Error: Into<Box<dyn Error + Send + Sync>>;

    /// Signs the request (PEM) and returns the chain as PEMs: leaf first, root last.
    fn sign(
        &self,
        identity: &Identity,
        csr_pem: String,
        ttl: Duration,
    ) -> impl Future<Output = Result<Vec<String>, Self::Error>> + Send;
}

/// [`Signer`] behind a pointer.
pub(crate) trait Sign: Send + Sync {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr_pem: String,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, Box<dyn Error + Send + Sync>>>;
}

impl<S: Signer> Sign for S {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr_pem: String,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, Box<dyn Error + Send + Sync>>> {
        Box::pin(async move { Signer::sign(self, identity, csr_pem, ttl).await.map_err(Into::into) })
    }
}
