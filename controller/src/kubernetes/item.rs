//! One object of a list or a watch: reduced to what Ambit keeps while it is deserialized. A page of pods is
//! megabytes of JSON and a small part of that afterwards; and an object with mistakes is one rejected object,
//! where a typed client would reject the whole list.

use std::borrow::Cow;
use std::marker::PhantomData;

use ambit_core::derive::{Kind, Object, ObjectKey};
use ambit_core::enrolment::MIRROR;
use ambit_crd::{Mistake, Outcome};
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// A kind that is watched.
pub(crate) trait Watched: Clone + std::fmt::Debug + Send + Sync + 'static {
    const KIND: Kind;
    const GROUP: &'static str;
    /// The versions that can be read, the preferred one first. Their shapes are equal.
    const VERSIONS: &'static [&'static str];
    const NAME: &'static str;
    const PLURAL: &'static str;
    /// The label selector.
    const SELECTOR: Option<&'static str>;
}

macro_rules! watched {
    ($($kind:ident $group:literal $versions:ident $plural:literal $selector:expr,)*) => {
        $(
            #[derive(Clone, Debug)]
            pub(crate) struct $kind;

            impl Watched for $kind {
                const KIND: Kind = Kind::$kind;
                const GROUP: &'static str = $group;
                const VERSIONS: &'static [&'static str] = $versions;
                const NAME: &'static str = stringify!($kind);
                const PLURAL: &'static str = $plural;
                const SELECTOR: Option<&'static str> = $selector;
            }
        )*
        /// Every kind that is watched.
        pub(crate) const KINDS: &[Kind] = &[$(Kind::$kind),*];

        /// Calls a macro for every kind.
        macro_rules! for_every_kind {
            ($do:ident) => { $($do!($kind);)* };
        }
        pub(crate) use for_every_kind;
    };
}

/// An object with mistakes.
#[derive(Clone, Debug)]
pub(crate) struct Rejected {
    pub(crate) mistakes: Vec<Mistake>,
    /// Of a policy: what closes its scope.
    pub(crate) closed: Option<Box<Object>>,
}

/// The object, and the fields that concern the controller but not the mesh.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) key: ObjectKey,
    pub(crate) read: Result<Box<Object>, Rejected>,
    pub(crate) uid: String,
    /// The version of the API in which the server answered.
    pub(crate) version: &'static str,
    pub(crate) resource_version: String,
    pub(crate) generation: i64,
    /// `metadata.creationTimestamp`, whose order is that of its text.
    pub(crate) created: String,
    /// `spec.taints` of a node.
    pub(crate) taints: Vec<String>,
    /// `status.conditions` as they are; of a route `status.parents`.
    pub(crate) conditions: Vec<Value>,
    /// `status.listeners` of a Gateway.
    pub(crate) listeners: Vec<Value>,
}

/// The item type of the API's lists and watches.
#[derive(Clone, Debug)]
pub(crate) struct Item<K> {
    /// Only the resource version, which the watcher needs.
    meta: ObjectMeta,
    pub(crate) seen: Box<Seen>,
    kind: PhantomData<K>,
}

impl<'de, K: Watched> Deserialize<'de> for Item<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Map::deserialize(deserializer)?;
        Ok(Self::read(value))
    }
}

impl<K: Watched> Item<K> {
    /// Adds the kind and its version, which lists leave out of their items.
    fn read(mut object: Map<String, Value>) -> Self {
        object.insert("kind".to_owned(), K::NAME.into());
        let preferred = K::VERSIONS[0];
        let api_version =
            if K::GROUP.is_empty() { preferred.to_owned() } else { format!("{}/{preferred}", K::GROUP) };
        let written = object.insert("apiVersion".to_owned(), api_version.into()).unwrap_or_default();
        let written = written.as_str().and_then(|written| written.rsplit('/').next());
        let version = K::VERSIONS.iter().copied().find(|version| written == Some(*version));
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
        let (meta, generation, created) = metadata.map(trim).unwrap_or_default();
        let listeners = listeners(K::KIND, &object);
        let (taints, conditions) = take_controller_fields(K::KIND, &mut object);
        let key = ObjectKey {
            kind: K::KIND,
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
        };
        let read = match ambit_crd::parse_object(Value::Object(object)) {
            Outcome::Accepted { object, .. } => Ok(object),
            Outcome::Rejected { mistakes, closed, .. } => Err(Rejected { mistakes, closed }),
            Outcome::Ignored { what } => {
                let mistakes = vec![Mistake { field: String::new(), message: what }];
                Err(Rejected { mistakes, closed: None })
            }
        };
        let uid = meta.uid.unwrap_or_default();
        let resource_version = meta.resource_version.clone().unwrap_or_default();
        Self {
            meta: ObjectMeta { resource_version: meta.resource_version, ..ObjectMeta::default() },
            seen: Box::new(Seen {
                key,
                read,
                uid,
                version: version.unwrap_or(preferred),
                resource_version,
                generation,
                created,
                taints,
                conditions,
                listeners,
            }),
            kind: PhantomData,
        }
    }
}

/// Removes what is not read: managed fields, and annotations of others (kubectl's holds the whole object
/// again).
fn trim(metadata: &mut Map<String, Value>) -> (ObjectMeta, i64, String) {
    metadata.remove("managedFields");
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| is_read(name));
    }
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).map(str::to_owned);
    let meta = ObjectMeta {
        name: text("name"),
        namespace: text("namespace"),
        uid: text("uid"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    };
    let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or_default();
    let created = text("creationTimestamp").unwrap_or_default();
    (meta, generation, created)
}

/// Whether an annotation is of a domain that Ambit reads, or says that the pod is a static one.
fn is_read(annotation: &str) -> bool {
    let domain = annotation.split_once('/').map_or("", |(domain, _)| domain);
    let of =
        |known: &str| domain.strip_suffix(known).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    annotation == MIRROR || ["istio.io", "ambit.dev"].into_iter().any(of)
}

fn listeners(kind: Kind, object: &Map<String, Value>) -> Vec<Value> {
    let status = object.get("status").filter(|_| kind == Kind::Gateway);
    let listeners = status.and_then(|status| status.get("listeners")).and_then(Value::as_array);
    listeners.cloned().unwrap_or_default()
}

/// Takes out what concerns only the controller: the taints of a node, the conditions of a mesh object.
fn take_controller_fields(kind: Kind, object: &mut Map<String, Value>) -> (Vec<String>, Vec<Value>) {
    match kind {
        Kind::Node => {
            object.remove("status");
            let spec = object.remove("spec").unwrap_or_default();
            let taints = spec.get("taints").and_then(Value::as_array).into_iter().flatten();
            let keys = taints.filter_map(|taint| taint.get("key").and_then(Value::as_str));
            (keys.map(str::to_owned).collect(), Vec::new())
        }
        Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::ServiceEntry | Kind::WorkloadEntry => {
            let status = object.remove("status").unwrap_or_default();
            let conditions = status.get("conditions").and_then(Value::as_array).cloned();
            (Vec::new(), conditions.unwrap_or_default())
        }
        Kind::HTTPRoute | Kind::GRPCRoute | Kind::TLSRoute | Kind::TCPRoute => {
            let status = object.remove("status").unwrap_or_default();
            let parents = status.get("parents").and_then(Value::as_array).cloned();
            (Vec::new(), parents.unwrap_or_default())
        }
        // The object itself has a record in its conditions.
        Kind::Gateway => {
            let conditions = object.get("status").and_then(|status| status.get("conditions"));
            (Vec::new(), conditions.and_then(Value::as_array).cloned().unwrap_or_default())
        }
        _ => (Vec::new(), Vec::new()),
    }
}

impl<K: Watched> Resource for Item<K> {
    /// The version that is served.
    type DynamicType = &'static str;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(_: &&'static str) -> Cow<'static, str> {
        K::NAME.into()
    }

    fn group(_: &&'static str) -> Cow<'static, str> {
        K::GROUP.into()
    }

    fn version(served: &&'static str) -> Cow<'static, str> {
        (*served).into()
    }

    fn plural(_: &&'static str) -> Cow<'static, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// Slices that Kubernetes derives from selectors repeat what the pods say, later and in more bytes.
const NOT_OF_SELECTORS: &str = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";

/// Kubernetes' own kinds.
const V1: &[&str] = &["v1"];
/// Istio served these before; the definitions of its older releases serve only the last.
const V1_OR_BETA: &[&str] = &["v1", "v1beta1"];
const V1_OR_OLDER: &[&str] = &["v1", "v1beta1", "v1alpha3"];
/// Routes of connections were experimental for long; their shapes are equal in what is read.
const V1_OR_ALPHA: &[&str] = &["v1", "v1alpha3", "v1alpha2"];
const V1_OR_ALPHA2: &[&str] = &["v1", "v1alpha2"];

watched! {
    Namespace "" V1 "namespaces" None,
    Node "" V1 "nodes" None,
    Pod "" V1 "pods" None,
    Service "" V1 "services" None,
    EndpointSlice "discovery.k8s.io" V1 "endpointslices" Some(NOT_OF_SELECTORS),
    AuthorizationPolicy "security.istio.io" V1_OR_BETA "authorizationpolicies" None,
    PeerAuthentication "security.istio.io" V1_OR_BETA "peerauthentications" None,
    ServiceEntry "networking.istio.io" V1_OR_OLDER "serviceentries" None,
    WorkloadEntry "networking.istio.io" V1_OR_OLDER "workloadentries" None,
    Gateway "gateway.networking.k8s.io" V1_OR_BETA "gateways" None,
    HTTPRoute "gateway.networking.k8s.io" V1_OR_BETA "httproutes" None,
    GRPCRoute "gateway.networking.k8s.io" V1 "grpcroutes" None,
    TLSRoute "gateway.networking.k8s.io" V1_OR_ALPHA "tlsroutes" None,
    TCPRoute "gateway.networking.k8s.io" V1_OR_ALPHA2 "tcproutes" None,
    ReferenceGrant "gateway.networking.k8s.io" V1_OR_BETA "referencegrants" None,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn older_versions_are_read_as_the_present_one() {
        for version in AuthorizationPolicy::VERSIONS {
            let written = json!({
                "apiVersion": format!("security.istio.io/{version}"),
                "kind": "AuthorizationPolicy",
                "metadata": {"name": "deny", "namespace": "shop", "resourceVersion": "7"},
                "spec": {"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["x"]}}]}]},
            });
            let item: Item<AuthorizationPolicy> = serde_json::from_value(written).unwrap();
            assert!(item.seen.read.is_ok(), "{version}: {:?}", item.seen.read);
            assert_eq!(item.seen.version, *version, "its status is written under it");
        }
    }
}
