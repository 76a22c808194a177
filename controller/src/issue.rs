//! Authorization of certificate requests: a node may have the identities of its own workloads, a workload its
//! own. Also the authentication of nodes by their tokens, outside Kubernetes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::mesh::Mesh;
use ambit_core::model::{Identity, NetworkMode, ServiceKey, Workload};
use ambit_kube::error::chain;
use ambit_xds::ca::{Refusal, SignCertificate};
use ambit_xds::{Authenticate, Caller, NodeName, Unauthenticated, async_trait};

use crate::ca::{self, Authorities};
use crate::shared::{Shared, is_waypoint};
use crate::telemetry::{CERTIFICATES_ISSUED, CERTIFICATES_REFUSED};
use crate::token::Tokens;

/// Authenticates nodes by their tokens.
#[derive(Debug)]
pub(crate) struct Nodes(pub(crate) Tokens);

#[async_trait]
impl Authenticate for Nodes {
    async fn node(&self, bearer: &str) -> Result<NodeName, Unauthenticated> {
        let node = self.0.node(bearer).map(NodeName::new);
        node.ok_or_else(|| Unauthenticated::Refused("the token is not valid".to_owned()))
    }
}

/// Signs the certificates that nodes may have.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) authorities: Authorities,
    pub(crate) shared: Arc<Shared>,
    pub(crate) hosted: Hosted,
}

/// For which of its workloads a node may have certificates. Never for those on the host network or without an
/// identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hosted {
    /// Those that are in the mesh, and waypoints.
    Enrolled,
    /// All: on Kubernetes a node agent enrols a pod before the API shows it.
    All,
}

impl SignCertificate for Signer {
    fn sign(
        &self,
        caller: &Caller,
        named: Option<&Identity>,
        csr_pem: &str,
        ttl: Duration,
    ) -> Result<Vec<String>, Refusal> {
        let signed =
            caller.meant(named).and_then(|(node, identity)| self.try_sign(node, &identity, csr_pem, ttl));
        match &signed {
            Ok(_) => CERTIFICATES_ISSUED.count(),
            Err(refusal) => {
                let reason = match refusal {
                    Refusal::Denied(_) => "not_hosted",
                    Refusal::Invalid(_) => "bad_request",
                    Refusal::Unavailable(_) => "internal",
                };
                CERTIFICATES_REFUSED.count([reason]);
            }
        }
        signed
    }
}

impl Signer {
    fn try_sign(
        &self,
        node: &NodeName,
        identity: &Identity,
        csr_pem: &str,
        ttl: Duration,
    ) -> Result<Vec<String>, Refusal> {
        let (mesh, waypoints) = (self.shared.mesh.load(), self.shared.waypoints.load());
        if !hosts(&mesh, &waypoints, node.as_str(), identity, self.hosted) {
            return Err(Refusal::Denied(format!(
                "no workload of {identity} may have a certificate on node {node}"
            )));
        }
        let authority = self.authorities.borrow().workloads.clone();
        let certificates = authority.sign(identity, csr_pem, ttl, SystemTime::now());
        let certificates = certificates.map_err(|error| match error {
            ca::Error::Csr(reason) => {
                Refusal::Invalid(format!("failed to accept the certificate request: {reason}"))
            }
            error => {
                tracing::error!(%node, %identity, error = chain(&error), "failed to sign a certificate");
                Refusal::Unavailable("failed to sign the certificate".to_owned())
            }
        })?;
        tracing::debug!(%node, %identity, ttl = ttl.as_secs(), "certificate issued");
        Ok(certificates)
    }
}

/// Whether a workload with the identity runs on the node.
fn hosts(
    mesh: &Mesh,
    waypoints: &BTreeSet<ServiceKey>,
    node: &str,
    identity: &Identity,
    hosted: Hosted,
) -> bool {
    let may = |workload: &Workload| {
        workload.has_identity()
            && match hosted {
                Hosted::Enrolled => workload.in_mesh() || is_waypoint(workload, waypoints),
                Hosted::All => workload.network_mode != NetworkMode::HostNetwork,
            }
    };
    // Workloads outside the cluster (WorkloadEntry, ServiceEntry) have no node.
    !node.is_empty()
        && mesh.workloads_on_node(node).any(|workload| may(workload) && workload.identity() == *identity)
}

#[cfg(test)]
mod tests;
