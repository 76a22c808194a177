//! The resource types of the stream, and resources as they are sent.

use std::sync::Arc;

use ambit_core::model::{Authorization, Service, Workload};
use ambit_core::route::ServiceRoutes;
use aws_lc_rs::digest;
use bytes::Bytes;
use prost::Message;
use prost_types::Any;

use crate::convert;
use crate::proto::discovery::{DeltaDiscoveryResponse, Resource};
use crate::proto::istio::workload::{Address, address};

/// How many types there are.
pub(crate) const COUNT: usize = 3;

/// A resource type. Types are sent in this order: a policy is in force before workloads name it, and routes
/// before their service has a waypoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// `istio.security.Authorization`
    Authorization,
    /// `ambit.v1.ServiceRoutes`: for waypoints, of the services that they front.
    Routes,
    /// `istio.workload.Address`: workloads and services.
    Address,
}

impl ResourceType {
    /// Every type.
    pub const ALL: [Self; COUNT] = [Self::Authorization, Self::Routes, Self::Address];

    /// Its type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::Routes => "type.googleapis.com/ambit.v1.ServiceRoutes",
            Self::Address => "type.googleapis.com/istio.workload.Address",
        }
    }

    /// The short name, for metrics and dumps.
    pub fn name(self) -> &'static str {
        match self {
            Self::Authorization => "Authorization",
            Self::Routes => "Routes",
            Self::Address => "Address",
        }
    }

    /// The type of that URL, if it is one of these.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.type_url() == url)
    }

    /// Its index in arrays by type.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// A resource ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) name: Arc<str>,
    /// A hash of the content. It does not depend on the process, so that clients recognise the resources of
    /// a restarted controller.
    pub(crate) version: Arc<str>,
    /// An encoded response with this resource only. In protobuf, concatenated responses are one response
    /// with all their resources.
    pub(crate) response: Bytes,
}

impl Encoded {
    pub(crate) fn workload(workload: &Workload) -> Self {
        let aliases = workload.addresses.iter().map(|ip| format!("{}/{ip}", workload.network)).collect();
        let message = Address { r#type: Some(address::Type::Workload(convert::encode_workload(workload))) };
        Self::new(ResourceType::Address, workload.uid.0.clone(), aliases, &message)
    }

    pub(crate) fn service(service: &Service) -> Self {
        // The model has no networks of services' addresses.
        let aliases = service.addresses.iter().map(|ip| format!("/{ip}")).collect();
        let message = Address { r#type: Some(address::Type::Service(convert::encode_service(service))) };
        Self::new(ResourceType::Address, service.key.to_string().into(), aliases, &message)
    }

    pub(crate) fn authorization(policy: &Authorization) -> Self {
        let message = convert::encode_authorization(policy);
        Self::new(ResourceType::Authorization, policy.key.to_string().into(), Vec::new(), &message)
    }

    pub(crate) fn routes(routes: &ServiceRoutes) -> Self {
        let message = convert::encode_routes(routes);
        Self::new(ResourceType::Routes, routes.service().to_string().into(), Vec::new(), &message)
    }

    /// `aliases` are `<network>/<ip>`, for subscribers that know only an address.
    fn new(kind: ResourceType, name: Arc<str>, aliases: Vec<String>, message: &impl Message) -> Self {
        let value = message.encode_to_vec();
        let version = version(&value);
        Self::assemble(kind, name, aliases, version, value)
    }

    /// From an encoded message and its version.
    pub(crate) fn assemble(
        kind: ResourceType,
        name: Arc<str>,
        aliases: Vec<String>,
        version: Arc<str>,
        value: Vec<u8>,
    ) -> Self {
        let resource = Resource {
            name: name.to_string(),
            aliases,
            version: version.to_string(),
            resource: Some(Any { type_url: kind.type_url().to_owned(), value }),
            ..Resource::default()
        };
        let response = DeltaDiscoveryResponse { resources: vec![resource], ..Default::default() };
        Self { name, version, response: response.encode_to_vec().into() }
    }
}

/// 128 bits of SHA-256: authors of objects must not be able to make two contents with one version.
fn version(body: &[u8]) -> Arc<str> {
    use std::fmt::Write as _;
    let hash = digest::digest(&digest::SHA256, body);
    let mut text = String::with_capacity(32);
    for byte in &hash.as_ref()[..16] {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    text.into()
}
