//! Ports that a pod excludes from capture: its annotations, and their effect.

use std::collections::BTreeSet;

use ambit_core::derive::{Kind, Metadata, Object};
use ambit_core::enrolment::Labels;
use ambit_core::enrolment::exclusion::{INBOUND_PORTS, MAX_PORTS, OUTBOUND_PORTS, describe, read};
use ambit_core::inbound::{PlaintextMode, authorize_tunnel, plaintext_modes};
use ambit_core::model::{Authorization, ExcludedPorts, Workload};
use ambit_core::policy::{Request, authorize};

use crate::build::{With as _, allow, deny, identity, ip, m, mesh, only, pod, policy_key, socket, uid};
use crate::objects::{self, Lab, namespace};

fn annotations(inbound: Option<&str>, outbound: Option<&str>) -> Labels {
    let both = [(INBOUND_PORTS, inbound), (OUTBOUND_PORTS, outbound)];
    both.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect()
}

#[test]
fn excluded_ports_are_read_from_annotations() {
    let most = |count: usize| (1..=count).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    let (enough, too_many) = (most(MAX_PORTS), most(MAX_PORTS + 1));
    let rows: [(&str, &str, Result<Vec<u16>, &str>); 16] = [
        ("nothing", "", Ok(vec![])),
        ("blanks", "  ", Ok(vec![])),
        ("one", "3306", Ok(vec![3306])),
        ("several, in any order", "3306,1,65535", Ok(vec![1, 3306, 65535])),
        ("blanks around them", " 3306 , 5432 ", Ok(vec![3306, 5432])),
        ("one twice", "80,80", Ok(vec![80])),
        ("as many as may be", &enough, Ok((1..=128).collect())),
        ("more than may be", &too_many, Err("129 ports are more than 128")),
        ("zero", "0", Err("\"0\" is not a port")),
        ("too great", "65536", Err("\"65536\" is not a port")),
        ("negative", "-1", Err("\"-1\" is not a port")),
        ("a sign", "+80", Err("\"+80\" is not a port")),
        ("a name", "3306,mysql", Err("\"mysql\" is not a port")),
        ("a range", "3000-4000", Err("\"3000-4000\" is not a port")),
        ("a star", "*", Err("\"*\" is not a port")),
        ("a comma at the end", "3306,", Err("\"\" is not a port")),
    ];
    for (name, text, expected) in rows {
        for (annotation, inbound) in [(INBOUND_PORTS, true), (OUTBOUND_PORTS, false)] {
            let (found, mistakes) = read(&[(annotation.to_owned(), text.to_owned())].into());
            let (own, other) =
                if inbound { (found.inbound, found.outbound) } else { (found.outbound, found.inbound) };
            assert_eq!(own, expected.clone().unwrap_or_default().into_iter().collect(), "{name}");
            assert!(other.is_empty(), "{name}: the other direction");
            let said: Vec<_> = mistakes.iter().map(|it| (it.annotation, it.message.as_str())).collect();
            match expected {
                Ok(_) => assert_eq!(said, [], "{name}"),
                Err(message) => assert!(
                    said.len() == 1 && said[0].0 == annotation && said[0].1.starts_with(message),
                    "{name}: {said:?}"
                ),
            }
        }
    }
    let (tunnels, mistakes) = read(&annotations(Some("8080,15008"), Some("15008")));
    let only_outbound = ExcludedPorts { inbound: [].into(), outbound: [15008].into() };
    assert_eq!((tunnels, mistakes.len()), (only_outbound, 1), "tunnels arrive there");
}

#[test]
fn excluded_ports_are_described() {
    let rows = [
        ("nothing", annotations(None, None), None),
        ("empty", annotations(Some(""), Some(" ")), None),
        ("one direction", annotations(Some("9090"), None), Some("inbound ports 9090")),
        (
            "both",
            annotations(Some("9090,8080"), Some("3306")),
            Some("inbound ports 8080,9090; outbound ports 3306"),
        ),
        (
            "a mistake in one",
            annotations(Some("9090"), Some("all")),
            Some(
                "inbound ports 9090; mistake in traffic.sidecar.istio.io/excludeOutboundPorts: \"all\" is \
                 not a port; no port is excluded",
            ),
        ),
    ];
    for (name, annotations, expected) in rows {
        assert_eq!(describe(&annotations).as_deref(), expected, "{name}");
    }
    let long = describe(&annotations(Some(&"x".repeat(100_000)), None)).expect("a mistake");
    assert!(long.len() < 200, "what is said is short: {} bytes", long.len());
}

#[test]
fn excluded_ports_reach_workloads() {
    let subject = |annotations| {
        let subject = objects::pod("shop/cart", &[], &["10.1.0.1"]);
        let metadata = Metadata { annotations, ..subject.metadata.clone() };
        Object::Pod(ambit_core::derive::Pod { metadata, ..subject })
    };
    let mut lab = Lab::new([namespace("shop", "ambient"), subject(annotations(None, None))]);
    let excluded = |lab: &Lab| lab.mesh.workload(&uid("shop/cart")).expect("known").excluded_ports.clone();
    assert_eq!(excluded(&lab), ExcludedPorts::default());

    lab.put([subject(annotations(Some("9090"), Some("3306,25")))]);
    assert_eq!(excluded(&lab), ExcludedPorts { inbound: [9090].into(), outbound: [25, 3306].into() });
    assert_eq!(lab.conditions(Kind::Pod, "shop/cart").len(), 0, "nothing to say");

    let (derived, _) = lab.put([subject(annotations(Some("9090"), Some("3306,x")))]);
    assert_eq!(
        excluded(&lab),
        ExcludedPorts { inbound: [9090].into(), outbound: [].into() },
        "none of a bad list"
    );
    let said = derived.conditions.iter().find(|it| it.object.name == "cart").expect("it is said");
    assert_eq!(
        (said.object.kind, said.field.as_deref(), said.accepted),
        (Kind::Pod, Some("metadata.annotations[traffic.sidecar.istio.io/excludeOutboundPorts]"), true),
    );
    assert!(said.message.contains("\"x\" is not a port"), "{}", said.message);

    lab.put([subject(annotations(None, None))]);
    assert_eq!(excluded(&lab), ExcludedPorts::default(), "removed");
    assert_eq!(lab.conditions(Kind::Pod, "shop/cart").len(), 0, "the condition is cleared");
}

fn excluding(ports: &[u16], policies: &[&Authorization]) -> Workload {
    let policies = policies.iter().map(|policy| policy.key.clone()).collect();
    let mut cart = Workload { policies, ..pod("shop/cart", &["10.1.0.1"]) };
    cart.excluded_ports.inbound = ports.iter().copied().collect();
    cart
}

#[test]
fn excluded_ports_are_open_to_plaintext() {
    let strict = || deny("shop/s", vec![only(m! { not_principals: ["*"] })]);
    let on_port = || deny("shop/s", vec![only(m! { not_principals: ["*"], destination_ports: ["9090"] })]);
    let many = || deny("shop/s", vec![only(m! {}.with(|m| m.destination_ports = (1..=1025).collect()))]);
    let rows: [(&str, Vec<Authorization>, PlaintextMode, &[(u16, PlaintextMode)]); 4] = [
        ("no policy", vec![], PlaintextMode::Open, &[]),
        ("STRICT", vec![strict()], PlaintextMode::Strict, &[(9090, PlaintextMode::Open)]),
        ("STRICT on that port", vec![on_port()], PlaintextMode::Open, &[]),
        ("more ports than may be", vec![many()], PlaintextMode::Check, &[(9090, PlaintextMode::Open)]),
    ];
    for (name, policies, default, ports) in rows {
        let cart = excluding(&[9090], &policies.iter().collect::<Vec<_>>());
        let mesh = mesh([cart], [], policies);
        let inbound = plaintext_modes(&mesh, &uid("shop/cart"));
        assert_eq!((inbound.default, inbound.ports), (default, ports.iter().copied().collect()), "{name}");
    }
    let late = Workload { policies: vec![policy_key("shop/late")], ..excluding(&[9090], &[]) };
    let inbound = plaintext_modes(&mesh([late], [], []), &uid("shop/cart"));
    assert_eq!(
        (inbound.default, inbound.ports),
        (PlaintextMode::Check, [(9090, PlaintextMode::Open)].into()),
        "a policy that is not known yet"
    );
}

#[test]
fn excluded_ports_permit_plaintext_and_not_tunnels() {
    let strict = deny("shop/s", vec![only(m! { not_principals: ["*"] })]);
    let only_web = allow("shop/w", vec![only(m! { principals: ["*/sa/web"] })]);
    let cart = excluding(&[9090], &[&strict, &only_web]);
    let mesh = mesh([cart, pod("shop/web", &["10.1.0.7"])], [], [strict, only_web]);
    let rows: [(&str, Option<&str>, &str, Option<&str>); 5] = [
        ("plaintext, excluded", None, "10.1.0.1:9090", None),
        ("plaintext, another port", None, "10.1.0.1:8080", Some("policy_denied")),
        ("plaintext, another's address", None, "10.1.0.7:9090", Some("address_mismatch")),
        ("tunnel, allowed", Some("shop/web"), "10.1.0.1:9090", None),
        ("tunnel, not allowed", Some("shop/api"), "10.1.0.1:9090", Some("policy_not_allowed")),
    ];
    for (name, peer, to, refused) in rows {
        let plaintext = Request { identity: None, source: ip("10.9.9.9"), destination: socket(to) };
        let decision = match peer {
            Some(peer) => {
                authorize_tunnel(&mesh, &uid("shop/cart"), socket(to), &identity(peer), ip("10.1.0.7"))
            }
            None => authorize(&mesh, &uid("shop/cart"), &plaintext),
        };
        assert_eq!(
            decision.outcome.as_ref().err().map(|denial| denial.reason().name()),
            refused,
            "{name}: {decision:?}"
        );
    }
    let inbound = plaintext_modes(&mesh, &uid("shop/cart"));
    assert_eq!(inbound.ports, [(9090, PlaintextMode::Open)].into());
    assert_eq!(inbound.probe_ports, BTreeSet::new());
}
