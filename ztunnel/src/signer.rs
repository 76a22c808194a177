//! Certificates come from the controller's CA.

use std::time::Duration;

use ambit_core::model::Identity;
use ambit_runtime::certificates::Signer;
use ambit_xds::ca::Client;

/// Asks the CA.
pub(crate) struct Ca(pub(crate) Client);

impl Signer for Ca {
    type Error = ambit_xds::Error;

    async fn sign(
        &self,
        identity: &Identity,
        csr_pem: String,
        ttl: Duration,
    ) -> Result<Vec<String>, Self::Error> {
        self.0.create_certificate(&csr_pem, identity, ttl).await
    }
}
