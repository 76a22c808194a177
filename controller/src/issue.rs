//! Who may have what: which node a token belongs to, and which identities that node may ask for.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::mesh::Mesh;
use ambit_core::model::{Identity, NetworkMode, Workload};
use ambit_xds::ca::{Refusal, SignCertificate};
use ambit_xds::{Authenticate, NodeName, Unauthenticated, async_trait};

use crate::ca::{self, Authorities};
use crate::shared::Shared;
use crate::telemetry::{CERTIFICATES_ISSUED, CERTIFICATES_REFUSED};
use crate::token::Tokens;

/// Tells nodes by their tokens.
#[derive(Debug)]
pub(crate) struct Nodes(pub(crate) Tokens);

#[async_trait]
impl Authenticate for Nodes {
    async fn node(&self, bearer: &str) -> Result<NodeName, Unauthenticated> {
        let node = self.0.node(bearer).map(NodeName::new);
        node.ok_or_else(|| Unauthenticated::Refused("the token is not valid".to_owned()))
    }
}

/// Signs for nodes what they may have.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) authorities: Authorities,
    pub(crate) shared: Arc<Shared>,
    pub(crate) hosted: Hosted,
}

/// For which of its workloads a node may have certificates. Never for those in the host's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hosted {
    /// Those that are in the mesh.
    Enrolled,
    /// All: on Kubernetes enrolment comes and goes, and an agent enrols before the API shows it.
    All,
}

impl SignCertificate for Signer {
    fn sign(
        &self,
        node: &NodeName,
        identity: &Identity,
        csr_pem: &str,
        ttl: Duration,
    ) -> Result<Vec<String>, Refusal> {
        let signed = self.try_sign(node, identity, csr_pem, ttl);
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
        if !hosts(&self.shared.mesh.load(), node.as_str(), identity, self.hosted) {
            return Err(Refusal::Denied(format!(
                "no workload of {identity} may have a certificate on node {node}"
            )));
        }
        let authority = self.authorities.borrow().workloads.clone();
        let chain = authority.sign(identity, csr_pem, ttl, SystemTime::now());
        let chain = chain.map_err(|error| match error {
            ca::Error::Csr(reason) => Refusal::Invalid(format!("the certificate request {reason}")),
            error => {
                tracing::error!(%node, %identity, error = %crate::error_chain(&error), "signing failed");
                Refusal::Unavailable("signing failed".to_owned())
            }
        })?;
        tracing::debug!(%node, %identity, ttl = ttl.as_secs(), "certificate issued");
        Ok(chain)
    }
}

/// Whether a workload with the identity is on the node.
fn hosts(mesh: &Mesh, node: &str, identity: &Identity, hosted: Hosted) -> bool {
    let may = |workload: &Workload| match hosted {
        Hosted::Enrolled => workload.in_mesh(),
        Hosted::All => workload.network_mode != NetworkMode::HostNetwork,
    };
    // Workloads that run nowhere (entries of the outside) have no node.
    !node.is_empty()
        && mesh.workloads_on_node(node).any(|workload| may(workload) && workload.identity() == *identity)
}

#[cfg(test)]
mod tests {
    use ambit_core::derive::{Object, ObjectEvent, Settings, World};

    use super::*;

    fn mesh() -> Mesh {
        let pod = |name: &str, namespace: &str, node: &str, account: &str, more: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
                 spec: {{containers: [], nodeName: {node}, serviceAccountName: {account}{more}}}\n\
                 status: {{phase: Running, podIP: 10.0.0.{}}}\n---\n",
                name.len()
            )
        };
        let ns = |name: &str, label: &str| {
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{label}}}}}\n---\n")
        };
        let text = ns("shop", "istio.io/dataplane-mode: ambient")
            + &ns("legacy", "")
            + &pod("a", "shop", "n1", "web", "")
            + &pod("aa", "shop", "n2", "db", "")
            + &pod("aaa", "legacy", "n1", "old", "")
            + &pod("aaaa", "shop", "n1", "host", ", hostNetwork: true")
            + &pod("aaaaa", "shop", "n1", "job", "").replace("Running", "Succeeded");
        let objects = ambit_crd::parse(&text).into_iter().map(|document| match document.outcome {
            ambit_crd::Outcome::Accepted { object, .. } => object,
            other => panic!("{other:?}"),
        });
        let events: Vec<_> = objects.map(|object: Box<Object>| ObjectEvent::Put(object)).collect();
        let mut mesh = Mesh::new();
        mesh.apply(World::new(Settings::default()).apply(events).changes);
        mesh
    }

    #[test]
    fn a_node_gets_the_identities_of_its_own_workloads() {
        let mesh = mesh();
        let rows = [
            ("its own", "n1", "spiffe://cluster.local/ns/shop/sa/web", true, true),
            ("another node's", "n1", "spiffe://cluster.local/ns/shop/sa/db", false, false),
            ("the other way round", "n2", "spiffe://cluster.local/ns/shop/sa/web", false, false),
            ("not enrolled", "n1", "spiffe://cluster.local/ns/legacy/sa/old", false, true),
            ("on the host's network", "n1", "spiffe://cluster.local/ns/shop/sa/host", false, false),
            ("finished", "n1", "spiffe://cluster.local/ns/shop/sa/job", false, false),
            ("another trust domain", "n1", "spiffe://example.org/ns/shop/sa/web", false, false),
            ("another namespace", "n1", "spiffe://cluster.local/ns/other/sa/web", false, false),
            ("nobody's", "n1", "spiffe://cluster.local/ns/shop/sa/nobody", false, false),
            ("a node without workloads", "n3", "spiffe://cluster.local/ns/shop/sa/web", false, false),
            ("no node", "", "spiffe://cluster.local/ns/shop/sa/web", false, false),
        ];
        for (name, node, identity, enrolled, all) in rows {
            let identity = identity.parse().unwrap();
            assert_eq!(hosts(&mesh, node, &identity, Hosted::Enrolled), enrolled, "{name}");
            assert_eq!(hosts(&mesh, node, &identity, Hosted::All), all, "{name}, on Kubernetes");
        }
    }
}
