//! `networking.istio.io`: [`WorkloadEntry`] and [`ServiceEntry`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::key::{Metadata, Selector};
use super::pod::Transport;
use crate::model::{Exported, Identity, IpBlock};

/// A workload that is not a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// `metadata`.
    pub metadata: Metadata,
    /// `None` for an entry with a host name.
    pub address: Option<IpAddr>,
    /// Empty for an entry with an address.
    pub hostname: String,
    /// Where it listens, by the name of the service's port.
    pub ports: BTreeMap<String, u16>,
    /// `spec.labels`.
    pub labels: BTreeMap<String, String>,
    /// Empty means the mesh's.
    pub network: String,
    /// Where it runs.
    pub locality: LocalityText,
    /// Its relative share of connections; 1 if not set.
    pub weight: Option<u32>,
    /// Empty means `default`.
    pub service_account: String,
}

/// Services by host name that are not Kubernetes Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// `metadata`.
    pub metadata: Metadata,
    /// One service each. A host may begin with a `*.`.
    pub hosts: Vec<String>,
    /// The addresses that clients use for any of the hosts.
    pub addresses: Vec<IpBlock>,
    /// `spec.ports`.
    pub ports: Vec<EntryPort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Inline endpoints; their metadata is the entry's.
    pub endpoints: Vec<WorkloadEntry>,
    /// Selects pods and workload entries as endpoints; empty selects none.
    pub selector: Selector,
    /// Identities that endpoints may present besides their own.
    pub subject_alt_names: Vec<Identity>,
    /// The namespaces that see it: `exportTo`.
    pub exported: Exported,
}

/// A port of a service entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPort {
    /// Unique in the entry.
    pub name: String,
    /// The port that clients connect to.
    pub port: u16,
    /// `targetPort`: the port of endpoints that name no other.
    pub target: Option<u16>,
    /// TCP, unless `protocol` is UDP.
    pub transport: Transport,
    /// In lower case: `http`, `tls`, …
    pub protocol: String,
}

/// How a service entry's endpoints are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The client has chosen the address itself.
    #[default]
    None,
    /// The endpoints have addresses.
    Static,
    /// The endpoints' host names are resolved, or the hosts themselves.
    Dns,
}

/// `region/zone/subzone`; the later parts are optional.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalityText {
    /// Empty if unknown.
    pub region: String,
    /// Empty if unknown.
    pub zone: String,
    /// Empty if unknown.
    pub subzone: String,
}
