//! The controller as this proxy's clients reach it: [`ControllerCredentials`] for xDS and the CA, and
//! [`CaSigner`], which has the CA sign certificates.

use std::time::Duration;

use ambit_certificates::Signer;
use ambit_core::model::Identity;
use ambit_daemon_kit::controller::Controller;
use ambit_xds::ca::Client;
use ambit_xds::client::{Connection, Credentials};

/// Has the controller's CA sign certificates.
#[derive(Debug)]
pub struct CaSigner(Client);

impl CaSigner {
    /// Nothing is asked yet.
    pub fn new(credentials: ControllerCredentials) -> Result<Self, ambit_xds::Error> {
        Ok(Self(Client::new(credentials)?))
    }
}

impl Signer for CaSigner {
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

/// How the controller is reached and authenticated. Roots and token are read again for every connection.
#[derive(Clone, Debug)]
pub struct ControllerCredentials {
    /// Address, server name, roots and token.
    pub controller: Controller,
    /// The name of the node that asks.
    pub node: String,
}

impl Credentials for ControllerCredentials {
    fn connection(&self) -> Result<Connection, ambit_xds::Error> {
        let unreadable =
            |error: ambit_daemon_kit::Error| ambit_xds::Error::Credentials { source: Box::new(error) };
        Ok(Connection {
            endpoint: format!("https://{}", self.controller.address),
            server_name: self.controller.server_name.clone(),
            root_pem: self.controller.roots().map_err(unreadable)?,
            token: self.controller.token().map_err(unreadable)?.reveal().to_owned(),
            node: self.node.clone(),
        })
    }
}
