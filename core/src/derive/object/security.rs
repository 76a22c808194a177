//! `security.istio.io`: [`AuthorizationPolicy`] and [`PeerAuthentication`].

use std::collections::BTreeMap;

use super::key::{Metadata, Selector};
use crate::model::IpBlock;

/// An AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// `metadata`.
    pub metadata: Metadata,
    /// Empty selects the whole namespace (in the root namespace: the mesh).
    pub selector: Selector,
    /// Waypoints and services that enforce the policy instead of ztunnel.
    pub target_refs: Vec<TargetRef>,
    /// What a match does.
    pub action: PolicyAction,
    /// Any of them matches; without rules the policy never matches.
    pub rules: Vec<PolicyRule>,
}

/// What a policy is attached to instead of workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetRef {
    /// The API group; empty for the core group.
    pub group: String,
    /// For example `Gateway`.
    pub kind: String,
    /// An object of the policy's namespace.
    pub name: String,
}

/// `spec.action`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyAction {
    /// A match permits.
    #[default]
    Allow,
    /// A match denies.
    Deny,
    /// Not supported: it decides nothing.
    Audit,
    /// No proxy asks the provider yet: everything that the policy selects is refused.
    Custom,
    /// The policy has mistakes: everything that it selects, as far as that can be read, is refused.
    Unreadable,
}

/// A rule matches if one of its sources, one of its operations and all of its conditions match. An empty list
/// matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    /// Sources, OR-ed.
    pub from: Vec<Source>,
    /// Operations, OR-ed.
    pub to: Vec<Operation>,
    /// Conditions, AND-ed.
    pub when: Vec<When>,
}

/// `from[].source`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// `principals`.
    pub principals: Vec<String>,
    /// `notPrincipals`.
    pub not_principals: Vec<String>,
    /// `requestPrincipals`, an HTTP field.
    pub request_principals: Vec<String>,
    /// `notRequestPrincipals`, an HTTP field.
    pub not_request_principals: Vec<String>,
    /// `namespaces`.
    pub namespaces: Vec<String>,
    /// `notNamespaces`.
    pub not_namespaces: Vec<String>,
    /// `serviceAccounts`.
    pub service_accounts: Vec<String>,
    /// `notServiceAccounts`.
    pub not_service_accounts: Vec<String>,
    /// `ipBlocks`.
    pub ip_blocks: Vec<IpBlock>,
    /// `notIpBlocks`.
    pub not_ip_blocks: Vec<IpBlock>,
    /// `remoteIpBlocks`, an HTTP field.
    pub remote_ip_blocks: Vec<IpBlock>,
    /// `notRemoteIpBlocks`, an HTTP field.
    pub not_remote_ip_blocks: Vec<IpBlock>,
}

/// `to[].operation`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// `hosts`, an HTTP field.
    pub hosts: Vec<String>,
    /// `notHosts`, an HTTP field.
    pub not_hosts: Vec<String>,
    /// `ports`.
    pub ports: Vec<u16>,
    /// `notPorts`.
    pub not_ports: Vec<u16>,
    /// `methods`, an HTTP field.
    pub methods: Vec<String>,
    /// `notMethods`, an HTTP field.
    pub not_methods: Vec<String>,
    /// `paths`, an HTTP field.
    pub paths: Vec<String>,
    /// `notPaths`, an HTTP field.
    pub not_paths: Vec<String>,
}

/// `when[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// The attribute, for example `source.ip`.
    pub key: String,
    /// One of them must match; empty matches.
    pub values: Vec<String>,
    /// None of them may match.
    pub not_values: Vec<String>,
}

/// A PeerAuthentication: whether peers must authenticate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// `metadata`.
    pub metadata: Metadata,
    /// Empty selects the whole namespace (in the root namespace: the mesh).
    pub selector: Selector,
    /// `mtls.mode`.
    pub mode: MtlsMode,
    /// `portLevelMtls`, by workload port; only with a selector.
    pub port_modes: BTreeMap<u16, MtlsMode>,
    /// The annotation `ambit.dev/same-node-tls`: whether TLS is demanded on the same node too. `None` if not
    /// set.
    pub same_node_tls: Option<bool>,
}

/// `mtls.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Inherited from the next wider object.
    #[default]
    Unset,
    /// Plaintext only; read as `Permissive`, as in Istio's ambient mode.
    Disable,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Mutual TLS only.
    Strict,
}
