//! The controller, as its clients ask for it: [`Way`]; and certificates from its CA: [`Ca`].

use std::time::Duration;

use ambit_certificates::Signer;
use ambit_core::model::Identity;
use ambit_daemon_kit::controller::Controller;
use ambit_xds::ca::Client;
use ambit_xds::client::{Connection, Credentials};

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

/// The way to the controller, read anew whenever it is gone.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) controller: Controller,
    pub(crate) node: String,
}

impl Credentials for Way {
    fn connection(&self) -> Result<Connection, ambit_xds::Error> {
        let unread =
            |error: ambit_daemon_kit::Error| ambit_xds::Error::Credentials { source: Box::new(error) };
        Ok(Connection {
            endpoint: format!("https://{}", self.controller.address),
            server_name: self.controller.server_name.clone(),
            root_pem: self.controller.roots().map_err(unread)?,
            token: self.controller.token().map_err(unread)?.reveal().to_owned(),
            node: self.node.clone(),
        })
    }
}
