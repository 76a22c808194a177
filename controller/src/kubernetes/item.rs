//! One object of a list or a watch: reduced to what Ambit keeps while it is deserialized. A page of pods is
//! megabytes of JSON and a small part of that afterwards; and an object with mistakes is one rejected object,
//! where a typed client would reject the whole list.

use std::borrow::Cow;
use std::marker::PhantomData;

use ambit_core::derive::{Kind, Object, ObjectKey};
use ambit_crd::{Mistake, Outcome};
use kube::Resource;
use kube::api::ObjectMeta;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// A kind that is watched.
pub(crate) trait Watched: Clone + std::fmt::Debug + Send + Sync + 'static {
    const KIND: Kind;
    const GROUP: &'static str;
    const VERSION: &'static str = "v1";
    const NAME: &'static str;
    const PLURAL: &'static str;
    /// The label selector.
    const SELECTOR: Option<&'static str>;
}

macro_rules! watched {
    ($($kind:ident $group:literal $plural:literal $selector:expr,)*) => {
        $(
            #[derive(Clone, Debug)]
            pub(crate) struct $kind;

            impl Watched for $kind {
                const KIND: Kind = Kind::$kind;
                const GROUP: &'static str = $group;
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

/// The object, and the fields that concern the controller but not the mesh.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) key: ObjectKey,
    pub(crate) read: Result<Box<Object>, Vec<Mistake>>,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) generation: i64,
    /// `spec.taints` of a node.
    pub(crate) taints: Vec<String>,
    /// `status.conditions` as they are.
    pub(crate) conditions: Vec<Value>,
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
        let api_version =
            if K::GROUP.is_empty() { K::VERSION.to_owned() } else { format!("{}/{}", K::GROUP, K::VERSION) };
        object.insert("apiVersion".to_owned(), api_version.into());
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
        let (meta, generation) = metadata.map(trim).unwrap_or_default();
        let (taints, conditions) = take_controller_fields(K::KIND, &mut object);
        let key = ObjectKey {
            kind: K::KIND,
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
        };
        let read = match ambit_crd::parse_object(Value::Object(object)) {
            Outcome::Accepted { object, .. } => Ok(object),
            Outcome::Rejected { mistakes, .. } => Err(mistakes),
            Outcome::Ignored { what } => Err(vec![Mistake { field: String::new(), message: what }]),
        };
        let uid = meta.uid.unwrap_or_default();
        let resource_version = meta.resource_version.clone().unwrap_or_default();
        Self {
            meta: ObjectMeta { resource_version: meta.resource_version, ..ObjectMeta::default() },
            seen: Box::new(Seen { key, read, uid, resource_version, generation, taints, conditions }),
            kind: PhantomData,
        }
    }
}

/// Removes what is not read: managed fields, and annotations of others (kubectl's holds the whole object
/// again).
fn trim(metadata: &mut Map<String, Value>) -> (ObjectMeta, i64) {
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
    (meta, metadata.get("generation").and_then(Value::as_i64).unwrap_or_default())
}

/// Whether an annotation is of a domain that Ambit reads.
fn is_read(annotation: &str) -> bool {
    let domain = annotation.split_once('/').map_or("", |(domain, _)| domain);
    ["istio.io", "ambit.dev"]
        .iter()
        .any(|known| domain.strip_suffix(known).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
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
        _ => (Vec::new(), Vec::new()),
    }
}

impl<K: Watched> Resource for Item<K> {
    type DynamicType = ();
    type Scope = kube::core::DynamicResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::NAME.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        K::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
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

watched! {
    Namespace "" "namespaces" None,
    Node "" "nodes" None,
    Pod "" "pods" None,
    Service "" "services" None,
    EndpointSlice "discovery.k8s.io" "endpointslices" Some(NOT_OF_SELECTORS),
    AuthorizationPolicy "security.istio.io" "authorizationpolicies" None,
    PeerAuthentication "security.istio.io" "peerauthentications" None,
    ServiceEntry "networking.istio.io" "serviceentries" None,
    WorkloadEntry "networking.istio.io" "workloadentries" None,
}
