//! What `ambit install` applies: the definitions of deploy/crds, and what the chart renders with its defaults
//! (deploy/ambit.yaml), as they were when this program was built.

use kube::api::{DynamicObject, ObjectMeta, TypeMeta};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, Scope};
use serde_json::Value;

use crate::error::Error;

/// Says who wrote a field, and who installed an object.
pub(crate) const MANAGER: &str = "ambit-cli";
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// On the definitions that are Ambit's, whoever applied them.
const PART_OF: &str = "app.kubernetes.io/part-of";
/// Helm's marks.
const HELM_CHART: &str = "helm.sh/chart";
pub(crate) const HELM_RELEASE: &str = "meta.helm.sh/release-name";

const MESH: &str = include_str!("../../deploy/ambit.yaml");
const DEFINITIONS: [&str; 4] = [
    include_str!("../../deploy/crds/networking.istio.io_serviceentries.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_workloadentries.yaml"),
    include_str!("../../deploy/crds/security.istio.io_authorizationpolicies.yaml"),
    include_str!("../../deploy/crds/security.istio.io_peerauthentications.yaml"),
];

/// Kinds in the order in which they are applied: what others refer to goes before them, what runs goes last.
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

/// An object, and where in the API it belongs.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) resource: ApiResource,
    pub(crate) scope: Scope,
    pub(crate) object: DynamicObject,
}

impl Manifest {
    fn read(value: &Value) -> Result<Self, Error> {
        let unreadable =
            |what: &str| Error::Refused(format!("a manifest of this program has no {what}: {value}"));
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

    /// Kind and name, for people.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.kind(), self.name())
    }
}

/// The definitions of Ambit's kinds.
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

/// The order in which an installation goes: the daemons first, alone, while their agents still have the
/// rights with which they clean up; then the rest, what runs before what it needs. The namespace is left to
/// who asks what else is in it.
pub(crate) fn leaving(manifests: Vec<Manifest>) -> (Vec<Manifest>, Vec<Manifest>) {
    let (daemons, mut rest): (Vec<_>, Vec<_>) =
        manifests.into_iter().filter(|it| it.kind() != "Namespace").partition(|it| it.kind() == "DaemonSet");
    rest.sort_by_key(|manifest| std::cmp::Reverse(rank(manifest.kind())));
    (daemons, rest)
}

fn rank(kind: &str) -> usize {
    // DaemonSets, which are in no list, go last: their pods wait for what the controller writes.
    ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len())
}

fn documents(text: &str) -> Result<Vec<Manifest>, Error> {
    let unreadable = |source| Error::Document { what: "a manifest of this program".to_owned(), source };
    let values = serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| serde::Deserialize::deserialize(document).map_err(unreadable));
    let values: Vec<Value> = values.collect::<Result<_, _>>()?;
    values.iter().filter(|value| !value.is_null()).map(Manifest::read).collect()
}

/// Not Helm installs this: its marks would have `helm` and people believe it.
fn relabel(manifest: &mut Manifest) {
    if let Some(labels) = &mut manifest.object.metadata.labels {
        labels.remove(HELM_CHART);
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    }
    if manifest.kind() == "Namespace" {
        // Whoever uninstalls may delete it then.
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

/// Whether a definition in the cluster is Ambit's, and so may be brought up to date.
pub(crate) fn is_ambits(definition: &DynamicObject) -> bool {
    let labels = definition.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(PART_OF)).is_some_and(|whole| whole == "ambit")
}

/// What is wrong with a definition that the cluster has.
pub(crate) fn trouble(ours: &Manifest, there: &DynamicObject) -> Option<String> {
    let conditions = there.data["status"]["conditions"].as_array().into_iter().flatten();
    let mut established = conditions.filter(|it| it["type"] == "Established");
    match established.next() {
        Some(condition) if condition["status"] == "True" => {}
        Some(condition) => {
            return Some(format!("not established: {}", condition["message"].as_str().unwrap_or_default()));
        }
        None => return Some("not established yet".to_owned()),
    }
    let version = served(&ours.object)?;
    let versions = there.data["spec"]["versions"].as_array().into_iter().flatten();
    let mut same = versions.filter(|it| it["name"] == version && it["served"] == true);
    same.next().is_none().then(|| format!("version {version} is not served"))
}

/// The kind that one of our definitions defines.
pub(crate) fn defined(definition: &Manifest) -> Option<ApiResource> {
    let spec = &definition.object.data["spec"];
    let version = served(&definition.object)?;
    let kind = GroupVersionKind::gvk(spec["group"].as_str()?, version, spec["names"]["kind"].as_str()?);
    Some(ApiResource::from_gvk_with_plural(&kind, spec["names"]["plural"].as_str()?))
}

/// The first version that a definition serves.
fn served(definition: &DynamicObject) -> Option<&str> {
    let versions = definition.data["spec"]["versions"].as_array()?;
    versions.iter().find(|version| version["served"] == true)?["name"].as_str()
}

/// The Helm release that has an object.
pub(crate) fn helm_release(object: &ObjectMeta) -> Option<&str> {
    object.annotations.as_ref()?.get(HELM_RELEASE).map(String::as_str)
}

/// What a kind is called in URLs.
fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(manifests: &[Manifest]) -> Vec<String> {
        manifests.iter().map(Manifest::title).collect()
    }

    #[test]
    fn all_definitions_are_here() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");
        let mut there: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.trim_end_matches(".yaml").split('_').rev().collect::<Vec<_>>().join("."))
            .collect();
        there.sort();
        let mut here: Vec<String> =
            definitions().unwrap().iter().map(|manifest| manifest.name().to_owned()).collect();
        here.sort();
        assert_eq!(here, there);
        for manifest in definitions().unwrap() {
            assert!(is_ambits(&manifest.object), "{}", manifest.name());
            assert_eq!(manifest.resource.plural, "customresourcedefinitions");
        }
    }

    #[test]
    fn what_others_need_goes_first() {
        let order = titles(&mesh().unwrap());
        let at =
            |title: &str| order.iter().position(|it| it == title).unwrap_or_else(|| panic!("no {title}"));
        let rows = [
            ("Namespace ambit-system", "ServiceAccount ztunnel"),
            (
                "ValidatingAdmissionPolicy ambit-node-agents-ambit-system",
                "ClusterRole ambit-node-ambit-system",
            ),
            ("ClusterRole ambit-controller-ambit-system", "ClusterRoleBinding ambit-controller-ambit-system"),
            ("RoleBinding ambit-node", "DaemonSet ztunnel"),
            ("ConfigMap ambit-controller", "Deployment ambit-controller"),
            ("Service ambit-controller", "Deployment ambit-controller"),
            ("Deployment ambit-controller", "DaemonSet ztunnel"),
        ];
        for (first, then) in rows {
            assert!(at(first) < at(then), "{first} before {then}: {order:?}");
        }
        assert_eq!(at("Namespace ambit-system"), 0);
        assert_eq!(order.last().unwrap(), "DaemonSet ztunnel");
    }

    #[test]
    fn daemons_leave_before_their_rights() {
        let all = mesh().unwrap();
        let count = all.len();
        let (daemons, rest) = leaving(all);
        assert_eq!(titles(&daemons), ["DaemonSet ztunnel"]);
        assert_eq!(rest.len(), count - 2, "all but the daemons and the namespace");
        assert_eq!(rest[0].title(), "Deployment ambit-controller");
        assert!(
            rest.last().unwrap().kind().starts_with("ValidatingAdmissionPolicy"),
            "what guards goes last"
        );
    }

    #[test]
    fn kinds_are_known() {
        for manifest in mesh().unwrap() {
            let known = ORDER.contains(&manifest.kind()) || manifest.kind() == "DaemonSet";
            assert!(known, "{} has no place in the order", manifest.title());
            let cluster = ["Namespace", "ClusterRole", "ClusterRoleBinding"].contains(&manifest.kind())
                || manifest.kind().starts_with("ValidatingAdmissionPolicy");
            assert_eq!(manifest.scope == Scope::Cluster, cluster, "{}", manifest.title());
        }
        let rows = [
            ("NetworkPolicy", "networkpolicies"),
            ("ClusterRole", "clusterroles"),
            ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
        ];
        for (kind, expected) in rows {
            assert_eq!(plural(kind), expected);
        }
    }

    #[test]
    fn what_is_wrong_with_definitions() {
        let ours = &definitions().unwrap()[0];
        let there = |established: &str, version: &str, served: bool| {
            let mut object = ours.object.clone();
            object.data["spec"]["versions"] = serde_json::json!([{ "name": version, "served": served }]);
            object.data["status"] = serde_json::json!({
                "conditions": [{ "type": "Established", "status": established, "message": "the name is taken" }],
            });
            object
        };
        let rows = [
            ("as it should be", there("True", "v1", true), None),
            ("refused", there("False", "v1", true), Some("not established: the name is taken")),
            ("an older one", there("True", "v1beta1", true), Some("version v1 is not served")),
            ("switched off", there("True", "v1", false), Some("version v1 is not served")),
            ("just made", ours.object.clone(), Some("not established yet")),
        ];
        for (name, there, expected) in rows {
            assert_eq!(trouble(ours, &there).as_deref(), expected, "{name}");
        }
        let kinds: Vec<String> =
            definitions().unwrap().iter().filter_map(defined).map(|kind| kind.plural).collect();
        assert_eq!(
            kinds,
            ["serviceentries", "workloadentries", "authorizationpolicies", "peerauthentications"]
        );
    }

    /// Octal numbers are numbers to Helm and kubectl, and words to others: `0400` would be refused.
    #[test]
    fn modes_are_numbers() {
        let mut modes = 0;
        for manifest in mesh().unwrap() {
            let volumes = manifest.object.data.pointer("/spec/template/spec/volumes");
            for volume in volumes.and_then(Value::as_array).into_iter().flatten() {
                if let Some(mode) = volume.pointer("/projected/defaultMode") {
                    assert_eq!(mode, 0o400, "{}: {volume}", manifest.title());
                    modes += 1;
                }
            }
        }
        assert_eq!(modes, 3);
    }

    #[test]
    fn nothing_says_helm() {
        for manifest in mesh().unwrap() {
            assert!(is_ours(&manifest.object), "{}", manifest.title());
            let text = serde_json::to_string(&manifest.object).unwrap();
            assert!(!text.contains("Helm") && !text.contains("helm.sh"), "{text}");
        }
    }
}
