use super::*;

fn titles(manifests: &[Manifest]) -> Vec<String> {
    manifests.iter().map(Manifest::title).collect()
}

#[test]
fn every_crd_of_the_repository_is_embedded() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");
    let mut expected: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.trim_end_matches(".yaml").split('_').rev().collect::<Vec<_>>().join("."))
        .collect();
    expected.sort();
    let mut embedded: Vec<String> =
        definitions().unwrap().iter().map(|manifest| manifest.name().to_owned()).collect();
    embedded.sort();
    assert_eq!(embedded, expected);
    for manifest in definitions().unwrap() {
        assert!(is_ambits(&manifest.object), "{}", manifest.name());
        assert_eq!(manifest.resource.plural, "customresourcedefinitions");
    }
}

#[test]
fn dependencies_are_applied_first() {
    let order = titles(&mesh().unwrap());
    let at = |title: &str| order.iter().position(|it| it == title).unwrap_or_else(|| panic!("no {title}"));
    let rows = [
        ("Namespace ambit-system", "ServiceAccount ztunnel"),
        ("ValidatingAdmissionPolicy ambit-node-agents-ambit-system", "ClusterRole ambit-node-ambit-system"),
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
fn daemons_are_uninstalled_before_their_permissions() {
    let all = mesh().unwrap();
    let count = all.len();
    let (daemons, rest) = uninstall_order(all);
    assert_eq!(titles(&daemons), ["DaemonSet ztunnel"]);
    assert_eq!(rest.len(), count - 2, "all but the daemons and the namespace");
    assert_eq!(rest[0].title(), "Deployment ambit-controller");
    assert!(
        rest.last().unwrap().kind().starts_with("ValidatingAdmissionPolicy"),
        "admission policies go last"
    );
}

#[test]
fn every_kind_has_an_order_a_scope_and_a_plural() {
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
fn problems_of_crds() {
    let ours = &definitions().unwrap()[0];
    let found = |established: &str, version: &str, served: bool| {
        let mut object = ours.object.clone();
        object.data["spec"]["versions"] = serde_json::json!([{ "name": version, "served": served }]);
        object.data["status"] = serde_json::json!({
            "conditions": [{ "type": "Established", "status": established, "message": "the name is taken" }],
        });
        object
    };
    let rows = [
        ("as it should be", found("True", "v1", true), None),
        ("refused", found("False", "v1", true), Some("not established: the name is taken")),
        ("an older one", found("True", "v1beta1", true), Some("version v1 is not served")),
        ("switched off", found("True", "v1", false), Some("version v1 is not served")),
        ("without conditions", ours.object.clone(), Some("not established yet")),
    ];
    for (name, found, expected) in rows {
        assert_eq!(problem(ours, &found).as_deref(), expected, "{name}");
    }
    let kinds: Vec<String> =
        definitions().unwrap().iter().filter_map(defined).map(|kind| kind.plural).collect();
    assert_eq!(kinds, ["serviceentries", "workloadentries", "authorizationpolicies", "peerauthentications"]);
}

/// Octal numbers are numbers to Helm and kubectl, and words to others: `0400` would be refused.
#[test]
fn file_modes_are_decimal_numbers() {
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
fn helm_is_not_mentioned() {
    for manifest in mesh().unwrap() {
        assert!(is_ours(&manifest.object), "{}", manifest.title());
        let text = serde_json::to_string(&manifest.object).unwrap();
        assert!(!text.contains("Helm") && !text.contains("helm.sh"), "{text}");
    }
}
