//! Which pods should be enrolled, which are announced, and what applies in between.

use ambit_core::balance::Avoid;
use ambit_core::derive::{Kind, MtlsMode, Object, Phase, Pod, Settings};
use ambit_core::enrolment::{Account, Candidate, Eligibility, Labels, is_annotated_by_us, is_redirected};
use ambit_core::inbound::{PlaintextMode, PlaintextModes, plaintext_modes};
use ambit_core::outbound::{Connection, Plan, plan};

use crate::build::{captures, ip, socket, uid};
use crate::objects::{Lab, ask, namespace, peer, pod};

const LABEL: &str = "istio.io/dataplane-mode";
const SYSTEM: &str = "ambit-system";

fn labels(mode: &str) -> Labels {
    if mode.is_empty() { Labels::new() } else { [(LABEL.to_owned(), mode.to_owned())].into() }
}

#[test]
fn eligibility_of_pods() {
    use Eligibility::{Desired, Finished, HostNetwork, NotLabelled, OptedOut, System};
    let rows = [
        // name, namespace, its label, the pod's label, host network, finished, answer
        ("no label", "shop", "", "", false, false, NotLabelled),
        ("the namespace, Istio's word", "shop", "ambient", "", false, false, Desired),
        ("the namespace, ours", "shop", "ambit", "", false, false, Desired),
        ("the namespace opts out", "shop", "none", "", false, false, OptedOut),
        ("another mesh's word", "shop", "sidecar", "", false, false, NotLabelled),
        ("the pod alone", "shop", "", "ambient", false, false, Desired),
        ("the pod against its namespace", "shop", "none", "ambit", false, false, Desired),
        ("the pod opts out", "shop", "ambient", "none", false, false, OptedOut),
        ("an unknown value on the pod", "shop", "ambient", "turbo", false, false, Desired),
        ("words are read to the letter", "shop", "Ambient", "AMBIT", false, false, NotLabelled),
        ("host network", "shop", "ambient", "", true, false, HostNetwork),
        ("host network, not asked for", "shop", "", "", true, false, NotLabelled),
        ("host network, opted out", "shop", "ambient", "none", true, false, OptedOut),
        ("a finished job", "shop", "ambient", "", false, true, Finished),
        ("a finished pod of the host's network", "shop", "ambient", "", true, true, Finished),
        ("the mesh's own", SYSTEM, "ambient", "", false, false, System),
        ("the mesh's own, itself labelled", SYSTEM, "", "ambient", false, false, System),
        ("the mesh's own, on the host's network", SYSTEM, "ambient", "", true, false, System),
        ("the mesh's own, not labelled", SYSTEM, "", "", false, false, NotLabelled),
    ];
    for (name, namespace, of_namespace, of_pod, host_network, finished, expected) in rows {
        let (of_namespace, of_pod) = (labels(of_namespace), labels(of_pod));
        let subject = Candidate {
            namespace,
            namespace_labels: Some(&of_namespace),
            pod_labels: Some(&of_pod),
            account: Account::Named,
            host_network,
            finished,
            system_namespace: SYSTEM,
        };
        assert_eq!(subject.evaluate(), expected, "{name}");
        let told = matches!(expected, HostNetwork | System);
        assert_eq!(expected.not_captured().is_some(), told, "{name}: what the annotation says");
    }
}

#[test]
fn a_pod_that_no_service_account_vouches_for_has_no_identity() {
    let mirror = |pod: Pod| {
        let mut pod = pod;
        pod.metadata.annotations.insert("kubernetes.io/config.mirror".into(), "0123".into());
        pod
    };
    let with = |account: &str| {
        annotated(Pod { service_account: account.into(), ..pod("shop/cart", &[], &["10.1.0.1"]) })
    };
    // On Kubernetes: its service account and whether it is in the mesh. With files, an account that is not
    // named is `default`, and annotations of the kubelet mean nothing.
    let rows = [
        ("an account", with("cart"), ("cart", true), "cart"),
        ("no account", with(""), ("", false), "default"),
        ("a static pod's mirror", mirror(with("")), ("", false), "default"),
        ("a mirror that names an account", mirror(with("cart")), ("", false), "cart"),
    ];
    for (name, pod, expected, with_files) in rows {
        for (identity_by_account, expected) in [(true, expected), (false, (with_files, true))] {
            let settings = Settings { identity_by_account, ..Settings::default() };
            let lab = Lab::with(settings, [namespace("shop", "ambient"), Object::Pod(pod.clone())]);
            let workload = lab.mesh.workload(&uid("shop/cart")).expect(name);
            assert_eq!((&*workload.service_account, workload.in_mesh()), expected, "{name}");
            assert_eq!(workload.has_identity(), !expected.0.is_empty(), "{name}");
        }
    }
    let labels = labels("ambient");
    for (account, expected) in [
        (Account::Named, Eligibility::Desired),
        (Account::Missing, Eligibility::NoServiceAccount),
        (Account::Static, Eligibility::StaticPod),
    ] {
        let candidate = Candidate {
            namespace: "shop",
            namespace_labels: Some(&labels),
            pod_labels: None,
            account,
            host_network: false,
            finished: false,
            system_namespace: SYSTEM,
        };
        assert_eq!(candidate.evaluate(), expected);
        let told = expected.not_captured().is_none_or(|reason| reason.ends_with("it has no identity"));
        assert!(told, "{expected:?}");
    }
}

#[test]
fn a_pod_label_decides_when_the_namespace_is_unknown() {
    let (ambient, none) = (labels("ambient"), Labels::new());
    let judge = |pod_labels| {
        Candidate {
            namespace: "shop",
            namespace_labels: None,
            pod_labels,
            account: Account::Named,
            host_network: false,
            finished: false,
            system_namespace: SYSTEM,
        }
        .evaluate()
    };
    assert_eq!(judge(Some(&ambient)), Eligibility::Desired);
    assert_eq!(judge(Some(&none)), Eligibility::NotLabelled);
    assert_eq!(judge(None), Eligibility::NotLabelled);
}

#[test]
fn only_the_exact_annotation_means_redirected() {
    let with = |value: &str| Labels::from([("ambient.istio.io/redirection".to_owned(), value.to_owned())]);
    assert!(is_redirected(&with("enabled")));
    for other in ["", "disabled", "pending", "Enabled", "true"] {
        assert!(!is_redirected(&with(other)), "{other:?}");
    }
    assert!(!is_redirected(&Labels::new()));
}

fn annotated(pod: Pod) -> Pod {
    let mut pod = pod;
    pod.metadata.annotations.insert("ambient.istio.io/redirection".into(), "enabled".into());
    pod
}

/// As on Kubernetes.
fn cluster(objects: impl IntoIterator<Item = Object>) -> Lab {
    Lab::with(Settings { enrolled_by_annotation: true, ..Settings::default() }, objects)
}

fn announced(lab: &Lab, name: &str) -> bool {
    lab.mesh.workload(&uid(name)).is_some_and(|workload| workload.in_mesh())
}

#[test]
fn pods_are_announced_when_desired_and_annotated() {
    let host = |pod: Pod| Pod { host_network: true, ..pod };
    let plain = || pod("shop/cart", &[], &["10.1.0.1"]);
    let rows = [
        ("desired and annotated", "ambient", annotated(plain()), true),
        ("desired, its node has not said so", "ambient", plain(), false),
        ("annotated, its label has gone", "", annotated(plain()), false),
        (
            "annotated, opted out",
            "ambient",
            annotated(pod("shop/cart", &[(LABEL, "none")], &["10.1.0.1"])),
            false,
        ),
        ("annotated by hand, host network", "ambient", annotated(host(plain())), false),
    ];
    for (name, mode, subject, expected) in rows {
        let lab = cluster([namespace("shop", mode), Object::Pod(subject)]);
        assert_eq!(announced(&lab, "shop/cart"), expected, "{name}");
        assert_eq!(captures(&lab.mesh, ip("10.1.0.1")), expected, "{name}: captured");
    }
    let own = annotated(pod("ambit-system/ztunnel-x", &[], &["10.1.0.9"]));
    let lab = cluster([namespace("ambit-system", "ambient"), Object::Pod(own)]);
    assert!(!announced(&lab, "ambit-system/ztunnel-x"), "the mesh's own pods never are");
}

#[test]
fn each_step_of_an_enrolment_is_one_change() {
    let mut lab = cluster([namespace("shop", ""), Object::Pod(pod("shop/cart", &[], &["10.1.0.1"]))]);
    assert!(
        lab.put([namespace("shop", "ambient")]).0.changes.is_empty(),
        "the label alone announces nothing"
    );
    let subject = || annotated(pod("shop/cart", &[], &["10.1.0.1"]));
    assert_eq!(lab.put([Object::Pod(subject())]).0.changes.len(), 1, "the annotation does");
    assert!(announced(&lab, "shop/cart"));
    assert_eq!(lab.put([namespace("shop", "")]).0.changes.len(), 1, "without the label it ends at once");
    assert!(!announced(&lab, "shop/cart"));
    let (derived, _) = lab.put([Object::Pod(pod("shop/cart", &[], &["10.1.0.1"]))]);
    assert!(derived.changes.is_empty(), "the annotation may go later");
    lab.put([namespace("shop", "ambient"), Object::Pod(Pod { phase: Phase::Succeeded, ..subject() })]);
    assert!(lab.mesh.workload(&uid("shop/cart")).is_none());
    lab.delete(Kind::Pod, "shop/cart");
}

/// A pod that its node has enrolled and that is not announced, in both directions of the change.
fn in_between() -> [(&'static str, Lab); 2] {
    let peers = || {
        [
            namespace("blog", "ambient"),
            Object::Pod(annotated(pod("blog/cms", &[], &["10.1.0.2"]))),
            Object::Pod(pod("lone/pod", &[], &["10.1.0.3"])),
        ]
    };
    let cart = || pod("shop/cart", &[], &["10.1.0.1"]);
    let joining = cluster(peers().into_iter().chain([namespace("shop", "ambient"), Object::Pod(cart())]));
    let leaving = cluster(peers().into_iter().chain([namespace("shop", ""), Object::Pod(annotated(cart()))]));
    [("joining", joining), ("leaving", leaving)]
}

#[test]
fn a_pod_connects_with_its_identity_before_it_is_announced() {
    for (name, lab) in in_between() {
        let flow = |to: &str| Connection { source: uid("shop/cart"), destination: socket(to), chosen: None };
        let Ok(Plan::Tunnel(tunnel)) = plan(&lab.mesh, &flow("10.1.0.2:80"), &Avoid::NONE, 0) else {
            panic!("{name}: a mesh destination is reached through a tunnel");
        };
        assert_eq!(
            tunnel.source.identity().to_string(),
            "spiffe://cluster.local/ns/shop/sa/default",
            "{name}"
        );
        assert!(
            matches!(plan(&lab.mesh, &flow("10.1.0.3:80"), &Avoid::NONE, 0), Ok(Plan::Passthrough(_))),
            "{name}: others"
        );
        assert!(
            matches!(plan(&lab.mesh, &flow("10.1.0.1:80"), &Avoid::NONE, 0), Ok(Plan::Local(_))),
            "{name}: itself"
        );
        let flow = Connection { source: uid("blog/cms"), destination: socket("10.1.0.1:80"), chosen: None };
        assert!(
            matches!(plan(&lab.mesh, &flow, &Avoid::NONE, 0), Ok(Plan::Passthrough(_))),
            "{name}: from a peer, plainly"
        );
    }
}

#[test]
fn a_pods_policies_apply_before_it_is_announced() {
    for (name, mut lab) in in_between() {
        assert_eq!(ask(&lab, "blog/default", "shop/cart", 80), "permitted", "{name}: a tunnel");
        assert_eq!(ask(&lab, "", "shop/cart", 80), "permitted", "{name}: plaintext");
        let open = PlaintextModes { default: PlaintextMode::Open, ports: [].into(), probe_ports: [].into() };
        assert_eq!(plaintext_modes(&lab.mesh, &uid("shop/cart")), open, "{name}");
        lab.put([Object::PeerAuthentication(peer("shop/strict", &[], MtlsMode::Strict, &[], 1))]);
        assert_eq!(ask(&lab, "blog/default", "shop/cart", 80), "permitted", "{name}: a tunnel under STRICT");
        assert_eq!(ask(&lab, "", "shop/cart", 80), "policy_denied", "{name}: plaintext under STRICT");
        assert_eq!(plaintext_modes(&lab.mesh, &uid("shop/cart")).default, PlaintextMode::Strict, "{name}");
    }
}

#[test]
fn annotations_of_other_field_managers_are_not_ours() {
    let rows = [
        ("ours", "ambient.istio.io/redirection", ["kubelet", "ambit"], true),
        ("what is not captured", "ambit.dev/not-captured", ["ambit", "kubelet"], true),
        ("another mesh's", "ambient.istio.io/redirection", ["kubelet", "install-cni"], false),
        ("another annotation", "example.com/a", ["kubelet", "ambit"], false),
    ];
    for (name, annotation, managers, expected) in rows {
        let annotations = Labels::from([(annotation.to_owned(), "enabled".to_owned())]);
        assert_eq!(is_annotated_by_us(Some(&annotations), managers.into_iter()), expected, "{name}");
    }
    assert!(!is_annotated_by_us(None, ["ambit"].into_iter()), "no annotations");
}
