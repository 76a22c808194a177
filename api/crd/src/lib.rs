//! The objects that users write: YAML or JSON → [`ambit_core::derive::Object`]s, of Kubernetes' own kinds,
//! Istio's and Gateway API's.
//!
//! Entry point: [`parse`]. Each document is accepted, ignored (if its kind is not one of the mesh's) or
//! rejected with all its mistakes by field. A rejected document does not affect the others.

#![warn(missing_docs)]

mod closed;
#[cfg(feature = "schema")]
mod constraints;
mod document;
mod endpoint_slice;
mod envelope;
mod field;
mod gateway;
mod gateway_api;
mod kubernetes;
mod metadata;
mod networking;
mod peer_authentication;
mod policy;
mod route;
#[cfg(feature = "schema")]
pub mod schema;
mod security;
mod service_entry;
mod workload_entry;

use std::fmt;

use ambit_core::derive::{Kind, Object, ObjectKey};
use serde_json::Value;

pub use field::Mistake;

/// The position of an object in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The first line of its document, from 1.
    pub line: usize,
    /// Its index in a `kind: List`.
    pub item: Option<usize>,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        match self.item {
            Some(item) => write!(f, ", items[{item}]"),
            None => Ok(()),
        }
    }
}

/// A document, or an item of a List.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Where it is.
    pub position: Position,
    /// What it was read as.
    pub outcome: Outcome,
}

/// What a document was read as.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// An object without mistakes.
    Accepted {
        /// The object.
        object: Box<Object>,
        /// The JSON that it was read from.
        source: Value,
    },
    /// An object of a kind that the mesh does not read.
    Ignored {
        /// Its description: `ConfigMap shop/settings (v1)`.
        what: String,
    },
    /// An object with mistakes.
    Rejected {
        /// Its key, if that could be read.
        object: Option<ObjectKey>,
        /// At least one.
        mistakes: Vec<Mistake>,
        /// Of a policy: what closes its scope as long as no good version is known.
        closed: Option<Box<Object>>,
    },
}

/// Reads all documents of a text: YAML or JSON, also of `kind: List`.
pub fn parse(text: &str) -> Vec<Document> {
    document::documents(text)
        .into_iter()
        .map(|found| match found {
            Ok(written) => {
                let position = Position { line: written.line, item: written.item };
                Document { position, outcome: parse_object(written.value) }
            }
            Err(unreadable) => {
                let mistake = Mistake { field: String::new(), message: unreadable.message };
                let outcome = Outcome::Rejected { object: None, mistakes: vec![mistake], closed: None };
                Document { position: Position { line: unreadable.line, item: None }, outcome }
            }
        })
        .collect()
}

/// The group of Gateway API.
const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// The kind that an `apiVersion` and `kind` mean.
enum Known {
    Kind(Kind),
    /// A known kind in an unknown version.
    Version(Kind),
    Unknown,
}

fn known(api_version: &str, kind: &str) -> Known {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let (kind, versions): (_, &[&str]) = match (group, kind) {
        ("", "Namespace") => (Kind::Namespace, &["v1"]),
        ("", "Node") => (Kind::Node, &["v1"]),
        ("", "Pod") => (Kind::Pod, &["v1"]),
        ("", "Service") => (Kind::Service, &["v1"]),
        ("discovery.k8s.io", "EndpointSlice") => (Kind::EndpointSlice, &["v1"]),
        // Istio serves these three versions with one schema.
        ("networking.istio.io", "WorkloadEntry") => (Kind::WorkloadEntry, &["v1", "v1beta1", "v1alpha3"]),
        ("networking.istio.io", "ServiceEntry") => (Kind::ServiceEntry, &["v1", "v1beta1", "v1alpha3"]),
        ("security.istio.io", "AuthorizationPolicy") => (Kind::AuthorizationPolicy, &["v1", "v1beta1"]),
        ("security.istio.io", "PeerAuthentication") => (Kind::PeerAuthentication, &["v1", "v1beta1"]),
        // Gateway API serves these versions with one schema.
        (GATEWAY_API, "Gateway") => (Kind::Gateway, &["v1", "v1beta1"]),
        (GATEWAY_API, "HTTPRoute") => (Kind::HTTPRoute, &["v1", "v1beta1"]),
        (GATEWAY_API, "GRPCRoute") => (Kind::GRPCRoute, &["v1"]),
        (GATEWAY_API, "TLSRoute") => (Kind::TLSRoute, &["v1", "v1alpha3", "v1alpha2"]),
        (GATEWAY_API, "TCPRoute") => (Kind::TCPRoute, &["v1", "v1alpha2"]),
        (GATEWAY_API, "ReferenceGrant") => (Kind::ReferenceGrant, &["v1", "v1beta1"]),
        _ => return Known::Unknown,
    };
    if versions.contains(&version) { Known::Kind(kind) } else { Known::Version(kind) }
}

/// Reads an object from JSON.
pub fn parse_object(value: Value) -> Outcome {
    let reject = |object, field: &str, message: String| Outcome::Rejected {
        object,
        mistakes: vec![Mistake { field: field.to_owned(), message }],
        closed: None,
    };
    if !value.is_object() {
        return reject(None, "", "an object is a mapping with apiVersion, kind and metadata".to_owned());
    }
    let text = |field| value.get(field).and_then(Value::as_str);
    let Some(kind_name) = text("kind") else { return reject(None, "kind", "missing".to_owned()) };
    let Some(api_version) = text("apiVersion") else {
        return reject(None, "apiVersion", "missing".to_owned());
    };
    let kind = match known(api_version, kind_name) {
        Known::Kind(kind) => kind,
        Known::Version(kind) => {
            let message = format!("{api_version:?} is not a version of {kind} that is understood");
            let mistakes = vec![Mistake { field: "apiVersion".to_owned(), message }];
            return rejected(kind, &value, mistakes);
        }
        // All other kinds of this group are known, so this one is misspelt. A misspelt policy must not be
        // ignored.
        Known::Unknown
            if api_version.starts_with("security.istio.io/") && kind_name != "RequestAuthentication" =>
        {
            return reject(None, "kind", format!("{kind_name:?} is not a kind of {api_version}"));
        }
        Known::Unknown => {
            return Outcome::Ignored { what: describe(api_version, kind_name, &value) };
        }
    };
    match read(kind, &value) {
        Ok(object) => Outcome::Accepted { object: Box::new(object), source: value },
        Err(mistakes) => rejected(kind, &value, mistakes),
    }
}

fn rejected(kind: Kind, value: &Value, mistakes: Vec<Mistake>) -> Outcome {
    let closed = closed::instead(kind, value).map(Box::new);
    Outcome::Rejected { object: metadata::key(kind, value), mistakes, closed }
}

fn read(kind: Kind, value: &Value) -> Result<Object, Vec<Mistake>> {
    match kind {
        Kind::Namespace => typed(value).and_then(kubernetes::namespace).map(Object::Namespace),
        Kind::Node => typed(value).and_then(kubernetes::node).map(Object::Node),
        Kind::Pod => typed(value).and_then(kubernetes::pod).map(Object::Pod),
        Kind::Service => typed(value).and_then(kubernetes::service).map(Object::Service),
        Kind::EndpointSlice => typed(value).and_then(endpoint_slice::convert).map(Object::EndpointSlice),
        Kind::WorkloadEntry => typed(value).and_then(workload_entry::convert).map(Object::WorkloadEntry),
        Kind::ServiceEntry => typed(value).and_then(service_entry::convert).map(Object::ServiceEntry),
        Kind::AuthorizationPolicy => typed(value).and_then(policy::convert).map(Object::AuthorizationPolicy),
        Kind::PeerAuthentication => {
            typed(value).and_then(peer_authentication::convert).map(Object::PeerAuthentication)
        }
        Kind::Gateway => typed(value).and_then(gateway::convert).map(Object::Gateway),
        Kind::HTTPRoute => typed(value).and_then(route::http).map(|it| Object::Route(Box::new(it))),
        Kind::GRPCRoute => typed(value).and_then(route::grpc).map(|it| Object::Route(Box::new(it))),
        Kind::TLSRoute => typed(value).and_then(route::tls).map(|it| Object::Route(Box::new(it))),
        Kind::TCPRoute => typed(value).and_then(route::tcp).map(|it| Object::Route(Box::new(it))),
        Kind::ReferenceGrant => typed(value).and_then(gateway::convert_grant).map(Object::ReferenceGrant),
    }
}

/// Reads the kind's type. The mistake names the first field that does not fit.
fn typed<'v, T: serde::Deserialize<'v>>(value: &'v Value) -> Result<T, Vec<Mistake>> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        vec![Mistake { field, message: error.into_inner().to_string() }]
    })
}

fn describe(api_version: &str, kind: &str, value: &Value) -> String {
    let metadata = |field: &str| value.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
    let name = metadata("name").unwrap_or("(no name)");
    match metadata("namespace") {
        Some(namespace) => format!("{kind} {namespace}/{name} ({api_version})"),
        None => format!("{kind} {name} ({api_version})"),
    }
}

#[cfg(test)]
mod tests;
