//! Who may have what: which node a token belongs to, and which identities that node may ask for.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::mesh::Mesh;
use ambit_core::model::Identity;
use ambit_xds::ca::{Refusal, SignCertificate};
use ambit_xds::{Authenticate, NodeName};

use crate::ca::{self, Authority};
use crate::shared::Shared;
use crate::telemetry::{CERTIFICATES_ISSUED, CERTIFICATES_REFUSED};
use crate::token::Tokens;

/// Tells nodes by their tokens.
#[derive(Debug)]
pub(crate) struct Nodes(pub(crate) Tokens);

impl Authenticate for Nodes {
    fn node(&self, bearer: &str) -> Option<NodeName> {
        self.0.node(bearer).map(NodeName::new)
    }
}

/// Signs for nodes what they may have.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) authority: Arc<Authority>,
    pub(crate) shared: Arc<Shared>,
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
        if !hosts(&self.shared.mesh.load(), node.as_str(), identity) {
            return Err(Refusal::Denied(format!("no workload of {identity} is enrolled on node {node}")));
        }
        let chain = self.authority.sign(identity, csr_pem, ttl, SystemTime::now());
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

/// Whether a workload with the identity is enrolled on the node.
fn hosts(mesh: &Mesh, node: &str, identity: &Identity) -> bool {
    mesh.workloads_on_node(node).any(|workload| workload.in_mesh() && workload.identity() == *identity)
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
            + &pod("aaaa", "shop", "n1", "host", ", hostNetwork: true");
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
    fn a_node_gets_the_identities_of_its_own_enrolled_workloads() {
        let mesh = mesh();
        let rows = [
            ("its own", "n1", "spiffe://cluster.local/ns/shop/sa/web", true),
            ("another node's", "n1", "spiffe://cluster.local/ns/shop/sa/db", false),
            ("the other way round", "n2", "spiffe://cluster.local/ns/shop/sa/web", false),
            ("not enrolled", "n1", "spiffe://cluster.local/ns/legacy/sa/old", false),
            ("on the host's network", "n1", "spiffe://cluster.local/ns/shop/sa/host", false),
            ("another trust domain", "n1", "spiffe://example.org/ns/shop/sa/web", false),
            ("another namespace", "n1", "spiffe://cluster.local/ns/other/sa/web", false),
            ("nobody's", "n1", "spiffe://cluster.local/ns/shop/sa/nobody", false),
            ("a node without workloads", "n3", "spiffe://cluster.local/ns/shop/sa/web", false),
            ("no node", "", "spiffe://cluster.local/ns/shop/sa/web", false),
        ];
        for (name, node, identity, expected) in rows {
            assert_eq!(hosts(&mesh, node, &identity.parse().unwrap()), expected, "{name}");
        }
    }
}
