//! PeerAuthentication objects → what is enforced.

use std::collections::BTreeMap;

use ambit_core::Denial;
use ambit_core::derive::{Kind, MtlsMode, Object, PeerAuthentication};
use ambit_core::inbound::{PlaintextMode, plaintext_modes};
use ambit_core::policy::{Request, authorize};

use crate::build::{ip, uid};
use crate::objects::{Lab, ask, peer, said, shop};

use MtlsMode::{Disable, Permissive, Strict, Unset};

/// The plaintext modes of `shop/cart` under these objects: for all ports, and the ports that differ.
fn modes(objects: impl IntoIterator<Item = Object>) -> (PlaintextMode, Vec<(u16, PlaintextMode)>) {
    let lab = Lab::new(shop().into_iter().chain(objects));
    let inbound = plaintext_modes(&lab.mesh, &uid("shop/cart"));
    (inbound.default, inbound.ports.into_iter().collect())
}

#[test]
fn peer_authentication_inherits_from_namespace_and_mesh() {
    const CART: &[(&str, &str)] = &[("app", "cart")];
    let mesh = |mode| peer("ambit-system/default", &[], mode, &[], 1);
    let shop = |mode| peer("shop/default", &[], mode, &[], 2);
    let cart = |mode, ports: &[(u16, MtlsMode)]| peer("shop/cart", CART, mode, ports, 3);
    let (open, strict) = (PlaintextMode::Open, PlaintextMode::Strict);
    let rows: Vec<(&str, Vec<PeerAuthentication>, PlaintextMode, Vec<(u16, PlaintextMode)>)> = vec![
        ("nothing said is PERMISSIVE", vec![], open, vec![]),
        ("the mesh is STRICT", vec![mesh(Strict)], strict, vec![]),
        ("the mesh is PERMISSIVE", vec![mesh(Permissive)], open, vec![]),
        ("the mesh is UNSET", vec![mesh(Unset)], open, vec![]),
        ("the mesh is DISABLE", vec![mesh(Disable)], open, vec![]),
        ("the namespace is STRICT", vec![shop(Strict)], strict, vec![]),
        ("the namespace loosens the mesh", vec![mesh(Strict), shop(Permissive)], open, vec![]),
        ("the namespace disables", vec![mesh(Strict), shop(Disable)], open, vec![]),
        ("the namespace inherits", vec![mesh(Strict), shop(Unset)], strict, vec![]),
        ("the namespace tightens", vec![mesh(Permissive), shop(Strict)], strict, vec![]),
        ("the workload is STRICT", vec![cart(Strict, &[])], strict, vec![]),
        ("the workload loosens", vec![mesh(Strict), shop(Strict), cart(Permissive, &[])], open, vec![]),
        ("the workload disables", vec![shop(Strict), cart(Disable, &[])], open, vec![]),
        ("the workload inherits from its namespace", vec![shop(Strict), cart(Unset, &[])], strict, vec![]),
        (
            "the workload inherits from the mesh",
            vec![mesh(Strict), shop(Unset), cart(Unset, &[])],
            strict,
            vec![],
        ),
        (
            "the workload inherits looseness",
            vec![mesh(Strict), shop(Permissive), cart(Unset, &[])],
            open,
            vec![],
        ),
        ("STRICT but for a port", vec![cart(Strict, &[(8080, Permissive)])], strict, vec![(8080, open)]),
        (
            "STRICT but for a disabled port",
            vec![cart(Strict, &[(8080, Disable)])],
            strict,
            vec![(8080, open)],
        ),
        (
            "STRICT but for two ports",
            vec![cart(Strict, &[(8080, Permissive), (9090, Permissive)])],
            strict,
            vec![(8080, open), (9090, open)],
        ),
        ("STRICT with a STRICT port", vec![cart(Strict, &[(8080, Strict)])], strict, vec![]),
        ("STRICT with an UNSET port", vec![cart(Strict, &[(8080, Unset)])], strict, vec![]),
        (
            "PERMISSIVE with a STRICT port",
            vec![cart(Permissive, &[(8080, Strict)])],
            open,
            vec![(8080, strict)],
        ),
        ("DISABLE with a STRICT port", vec![cart(Disable, &[(8080, Strict)])], open, vec![(8080, strict)]),
        ("PERMISSIVE with a PERMISSIVE port", vec![cart(Permissive, &[(8080, Permissive)])], open, vec![]),
        (
            "ports of both kinds",
            vec![cart(Strict, &[(8080, Strict), (9090, Permissive)])],
            strict,
            vec![(9090, open)],
        ),
        (
            "UNSET with a STRICT port, nothing inherited",
            vec![cart(Unset, &[(8080, Strict)])],
            open,
            vec![(8080, strict)],
        ),
        (
            "UNSET with a PERMISSIVE port under a STRICT mesh",
            vec![mesh(Strict), cart(Unset, &[(8080, Permissive)])],
            strict,
            vec![(8080, open)],
        ),
        (
            "UNSET with a PERMISSIVE port under a STRICT namespace",
            vec![shop(Strict), cart(Unset, &[(8080, Permissive)])],
            strict,
            vec![(8080, open)],
        ),
        (
            "UNSET with a disabled port under a STRICT namespace",
            vec![shop(Strict), cart(Unset, &[(8080, Disable)])],
            strict,
            vec![(8080, open)],
        ),
        (
            "UNSET with a STRICT port under a STRICT mesh",
            vec![mesh(Strict), cart(Unset, &[(8080, Strict)])],
            strict,
            vec![],
        ),
        (
            "UNSET with ports of both kinds under a STRICT mesh",
            vec![mesh(Strict), cart(Unset, &[(8080, Strict), (9090, Permissive)])],
            strict,
            vec![(9090, open)],
        ),
        (
            "UNSET with a STRICT port under a loosened namespace",
            vec![mesh(Strict), shop(Permissive), cart(Unset, &[(8080, Strict)])],
            open,
            vec![(8080, strict)],
        ),
        ("another workload's", vec![peer("shop/api", &[("app", "api")], Strict, &[], 1)], open, vec![]),
        ("another namespace's", vec![peer("blog/default", &[], Strict, &[], 1)], open, vec![]),
        (
            "a selector in the root namespace",
            vec![peer("ambit-system/cart", CART, Strict, &[], 1)],
            open,
            vec![],
        ),
        (
            "the oldest of a namespace",
            vec![peer("shop/a", &[], Permissive, &[], 9), peer("shop/b", &[], Strict, &[], 5)],
            strict,
            vec![],
        ),
        (
            "the oldest of a workload",
            vec![peer("shop/a", CART, Strict, &[], 9), peer("shop/b", CART, Permissive, &[], 5)],
            open,
            vec![],
        ),
        (
            "the oldest of the mesh",
            vec![
                peer("ambit-system/a", &[], Strict, &[], 9),
                peer("ambit-system/b", &[], Permissive, &[], 5),
            ],
            open,
            vec![],
        ),
        (
            "of the same age, by name",
            vec![peer("shop/b", CART, Permissive, &[], 5), peer("shop/a", CART, Strict, &[], 5)],
            strict,
            vec![],
        ),
        (
            "the ports of an object without selector are not looked at",
            vec![peer("shop/default", &[], Strict, &[(8080, Permissive)], 1)],
            strict,
            vec![],
        ),
    ];
    for (name, objects, default, ports) in rows {
        let forwards = objects.clone().into_iter().map(Object::PeerAuthentication);
        let backwards = objects.into_iter().rev().map(Object::PeerAuthentication);
        assert_eq!(modes(forwards), (default, ports.clone()), "{name}");
        assert_eq!(modes(backwards), (default, ports), "{name}, in the other order");
    }
}

#[test]
fn an_object_without_creation_time_counts_as_the_youngest() {
    let mut ageless = peer("shop/a", &[], Strict, &[], 0);
    ageless.metadata.created = None;
    let aged = peer("shop/b", &[], Permissive, &[], i64::from(u32::MAX));
    assert_eq!(modes([ageless, aged].map(Object::PeerAuthentication)), (PlaintextMode::Open, vec![]));
}

#[test]
fn strict_denies_unauthenticated_peers_and_names_the_object() {
    let strict = Object::PeerAuthentication(peer("shop/default", &[], Strict, &[], 1));
    let mut lab = Lab::new(shop().into_iter().chain([strict]));
    assert_eq!(ask(&lab, "", "shop/cart", 80), "policy_denied");
    assert_eq!(ask(&lab, "shop/web", "shop/cart", 80), "permitted");
    assert_eq!(ask(&lab, "", "blog/cms", 80), "permitted");
    let peer = Request {
        identity: None,
        source: ip("10.1.0.7"),
        destination: "10.1.0.1:80".parse().expect("an address"),
    };
    let denial = authorize(&lab.mesh, &uid("shop/cart"), &peer).outcome.expect_err("refused");
    assert_eq!(
        denial.policy().map(ToString::to_string).as_deref(),
        Some("shop/converted_peer_authentication_default")
    );
    assert!(matches!(denial, Denial::PolicyDenied { .. }));
    lab.delete(Kind::PeerAuthentication, "shop/default");
    assert_eq!(ask(&lab, "", "shop/cart", 80), "permitted");
    assert_eq!(lab.mesh.policies().count(), 0);
}

#[test]
fn conditions_of_peer_authentications() {
    let mut lab = Lab::new([
        Object::PeerAuthentication(peer("shop/a", &[], Strict, &[], 1)),
        Object::PeerAuthentication(peer("shop/b", &[], Strict, &[], 2)),
        Object::PeerAuthentication(peer("ambit-system/a", &[("app", "x")], Strict, &[], 1)),
        Object::PeerAuthentication(peer("bank/a", &[], Strict, &[(80, Permissive)], 1)),
        Object::PeerAuthentication(peer("blog/a", &[], Disable, &[], 1)),
    ]);
    let field = |name: &str| Some(name.to_owned());
    let rows = [
        ("shop/a", (true, None)),
        ("shop/b", (false, field("metadata.creationTimestamp"))),
        ("ambit-system/a", (false, field("spec.selector"))),
        ("bank/a", (true, field("spec.portLevelMtls"))),
        ("blog/a", (true, field("spec.mtls.mode"))),
    ];
    for (name, expected) in rows {
        assert_eq!(said(&lab, Kind::PeerAuthentication, name), [expected], "{name}");
    }
    let (derived, _) = lab.delete(Kind::PeerAuthentication, "shop/a");
    let news: BTreeMap<_, _> =
        derived.conditions.iter().map(|c| (c.object.to_string(), c.accepted)).collect();
    assert_eq!(
        news,
        BTreeMap::from([("PeerAuthentication shop/b".to_owned(), true)]),
        "the next one takes over"
    );
}
