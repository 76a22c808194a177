//! What applies to all objects: [`Settings`].

use std::sync::Arc;

use crate::model::TrustDomain;

/// What applies to all objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The trust domain of all workloads.
    pub trust_domain: TrustDomain,
    /// Trust domains that are equivalent to `trust_domain`, in policies and in peers' certificates.
    pub trust_domain_aliases: Arc<[TrustDomain]>,
    /// Policies without selector in this namespace apply to the whole mesh.
    pub root_namespace: String,
    /// The name of the Kubernetes cluster, part of every workload's uid.
    pub cluster: String,
    /// The DNS domain of services.
    pub domain: String,
    /// The network of workloads that name none.
    pub network: String,
    /// A pod counts as enrolled only when its node has annotated it; else its label is enough.
    pub enrolled_by_annotation: bool,
    /// Only a pod with a service account has an identity, and a static pod has none: as on Kubernetes, where
    /// any node may create such pods in any namespace. Else a pod that names no account has `default`.
    pub identity_by_account: bool,
    /// The namespace of the mesh's own pods, which are never enrolled.
    pub system_namespace: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: [].into(),
            root_namespace: "ambit-system".to_owned(),
            cluster: "Kubernetes".to_owned(),
            domain: "cluster.local".to_owned(),
            network: String::new(),
            enrolled_by_annotation: false,
            identity_by_account: false,
            system_namespace: "ambit-system".to_owned(),
        }
    }
}
