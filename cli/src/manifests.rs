//! The embedded manifests: the CRDs of deploy/crds, and what the chart renders with its defaults
//! (deploy/ambit.yaml), as of this program's build.

use kube::api::{DynamicObject, ObjectMeta, TypeMeta};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, Scope};
use serde_json::Value;

use crate::error::Error;

/// The field manager, and the value of [`MANAGED_BY`].
pub(crate) const MANAGER: &str = "ambit-cli";
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// On the CRDs that are Ambit's, whichever tool applied them.
const PART_OF: &str = "app.kubernetes.io/part-of";
/// Labels and annotations of Helm.
const HELM_CHART: &str = "helm.sh/chart";
pub(crate) const HELM_RELEASE: &str = "meta.helm.sh/release-name";

const MESH: &str = include_str!("../../deploy/ambit.yaml");
const DEFINITIONS: [&str; 4] = [
    include_str!("../../deploy/crds/networking.istio.io_serviceentries.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_workloadentries.yaml"),
    include_str!("../../deploy/crds/security.istio.io_authorizationpolicies.yaml"),
    include_str!("../../deploy/crds/security.istio.io_peerauthentications.yaml"),
];

/// Kinds in the order in which they are applied: what others refer to comes first, workloads come last.
const ORDER: [&str; 14] = [
    "CustomResourceDefinition",
    "Namespace",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "ServiceAccount",
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "Deployment",
];

/// An object, and its place in the API.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) resource: ApiResource,
    pub(crate) scope: Scope,
    pub(crate) object: DynamicObject,
}

impl Manifest {
    fn parse(value: &Value) -> Result<Self, Error> {
        let unreadable =
            |what: &str| Error::Refused(format!("failed to parse an embedded manifest: no {what}: {value}"));
        let word = |name| value[name].as_str().ok_or_else(|| unreadable(name));
        let types = TypeMeta { api_version: word("apiVersion")?.to_owned(), kind: word("kind")?.to_owned() };
        let kind = GroupVersionKind::try_from(&types).map_err(|_| unreadable("kind"))?;
        let resource = ApiResource::from_gvk_with_plural(&kind, &plural(&kind.kind));
        let scope =
            if value["metadata"]["namespace"].is_string() { Scope::Namespaced } else { Scope::Cluster };
        let object = serde_json::from_value(value.clone()).map_err(|_| unreadable("metadata"))?;
        Ok(Self { resource, scope, object })
    }

    pub(crate) fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.object.metadata.namespace.as_deref()
    }

    pub(crate) fn kind(&self) -> &str {
        &self.resource.kind
    }

    /// Kind and name, for messages.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.kind(), self.name())
    }
}

/// The CRDs of Ambit's kinds.
pub(crate) fn definitions() -> Result<Vec<Manifest>, Error> {
    DEFINITIONS.iter().map(|text| documents(text)).collect::<Result<Vec<_>, _>>().map(|all| all.concat())
}

/// Everything else, in the order in which it is applied.
pub(crate) fn mesh() -> Result<Vec<Manifest>, Error> {
    let mut manifests = documents(MESH)?;
    for manifest in &mut manifests {
        relabel(manifest);
    }
    manifests.sort_by_key(|manifest| rank(manifest.kind()));
    Ok(manifests)
}

/// The order of an uninstallation: the DaemonSet first, alone, while its agents have the permissions to clean
/// up; then the rest, workloads before what they need. The namespace is left out: the caller checks its
/// content.
pub(crate) fn uninstall_order(manifests: Vec<Manifest>) -> (Vec<Manifest>, Vec<Manifest>) {
    let (daemons, mut rest): (Vec<_>, Vec<_>) =
        manifests.into_iter().filter(|it| it.kind() != "Namespace").partition(|it| it.kind() == "DaemonSet");
    rest.sort_by_key(|manifest| std::cmp::Reverse(rank(manifest.kind())));
    (daemons, rest)
}

fn rank(kind: &str) -> usize {
    // DaemonSets, which are not listed, come last: their pods wait for what the controller writes.
    ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len())
}

fn documents(text: &str) -> Result<Vec<Manifest>, Error> {
    let unreadable = |source| Error::Document { document: "an embedded manifest".to_owned(), source };
    let values = serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| serde::Deserialize::deserialize(document).map_err(unreadable));
    let values: Vec<Value> = values.collect::<Result<_, _>>()?;
    values.iter().filter(|value| !value.is_null()).map(Manifest::parse).collect()
}

/// Removes Helm's labels: this installation is not managed by Helm.
fn relabel(manifest: &mut Manifest) {
    if let Some(labels) = &mut manifest.object.metadata.labels {
        labels.remove(HELM_CHART);
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    }
    if manifest.kind() == "Namespace" {
        // Allows `ambit uninstall` to delete it.
        let labels = manifest.object.metadata.labels.get_or_insert_default();
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    }
    if let Some(labels) = manifest.object.data.pointer_mut("/spec/template/metadata/labels")
        && let Some(labels) = labels.as_object_mut()
    {
        labels.remove(HELM_CHART);
        labels.insert(MANAGED_BY.to_owned(), MANAGER.into());
    }
}

/// Whether this program installed an object.
pub(crate) fn is_ours(object: &DynamicObject) -> bool {
    let labels = object.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

/// Whether a CRD in the cluster is Ambit's, and so may be upgraded.
pub(crate) fn is_ambits(definition: &DynamicObject) -> bool {
    let labels = definition.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(PART_OF)).is_some_and(|whole| whole == "ambit")
}

/// Why a CRD in the cluster cannot be used.
pub(crate) fn problem(ours: &Manifest, found: &DynamicObject) -> Option<String> {
    let conditions = found.data["status"]["conditions"].as_array().into_iter().flatten();
    let mut established = conditions.filter(|it| it["type"] == "Established");
    match established.next() {
        Some(condition) if condition["status"] == "True" => {}
        Some(condition) => {
            return Some(format!("not established: {}", condition["message"].as_str().unwrap_or_default()));
        }
        None => return Some("not established yet".to_owned()),
    }
    let version = served(&ours.object)?;
    let versions = found.data["spec"]["versions"].as_array().into_iter().flatten();
    let mut same = versions.filter(|it| it["name"] == version && it["served"] == true);
    same.next().is_none().then(|| format!("version {version} is not served"))
}

/// The kind that a CRD of ours defines.
pub(crate) fn defined(definition: &Manifest) -> Option<ApiResource> {
    let spec = &definition.object.data["spec"];
    let version = served(&definition.object)?;
    let kind = GroupVersionKind::gvk(spec["group"].as_str()?, version, spec["names"]["kind"].as_str()?);
    Some(ApiResource::from_gvk_with_plural(&kind, spec["names"]["plural"].as_str()?))
}

/// The first version that a CRD serves.
fn served(definition: &DynamicObject) -> Option<&str> {
    let versions = definition.data["spec"]["versions"].as_array()?;
    versions.iter().find(|version| version["served"] == true)?["name"].as_str()
}

/// The Helm release that an object belongs to.
pub(crate) fn helm_release(object: &ObjectMeta) -> Option<&str> {
    object.annotations.as_ref()?.get(HELM_RELEASE).map(String::as_str)
}

/// The plural of a kind, as in URLs.
fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests;
