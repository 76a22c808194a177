use super::*;

fn veth(master: Option<&str>, strict_reverse_path: bool) -> Facts {
    let master = master.map(str::to_owned);
    Facts {
        interfaces: vec!["veth".to_owned()],
        ipv6: false,
        node_end: Some(NodeEnd { master, strict_reverse_path, foreign: Vec::new() }),
    }
}

fn interfaces(kinds: &[&str]) -> Facts {
    Facts { interfaces: kinds.iter().map(|kind| (*kind).to_owned()).collect(), ..veth(None, true) }
}

#[test]
fn links_by_what_was_found() {
    let foreign = || {
        let mut facts = veth(Some("bridge"), false);
        facts.node_end.as_mut().expect("an end").foreign = vec!["cil_from_container".to_owned()];
        facts
    };
    let unknown = Link::Unknown;
    let rows = [
        ("routed, reverse paths checked", veth(None, true), Link::Isolated),
        ("routed, reverse paths not checked", veth(None, false), Link::Shared),
        ("routed, IPv6 as well", Facts { ipv6: true, ..veth(None, true) }, Link::Shared),
        ("port of a bridge", veth(Some("bridge"), false), Link::Shared),
        ("port of a bridge, reverse paths checked", veth(Some("bridge"), true), Link::Shared),
        (
            "port of Open vSwitch",
            veth(Some("openvswitch"), true),
            unknown(Unknown::Master("openvswitch".to_owned())),
        ),
        ("in a VRF", veth(Some("vrf"), true), unknown(Unknown::Master("vrf".to_owned()))),
        ("foreign program", foreign(), unknown(Unknown::Foreign(vec!["cil_from_container".to_owned()]))),
        ("other end elsewhere", Facts { node_end: None, ..veth(None, true) }, unknown(Unknown::Elsewhere)),
        ("no interface", interfaces(&[]), unknown(Unknown::Interfaces(0))),
        ("two interfaces", interfaces(&["veth", "veth"]), unknown(Unknown::Interfaces(2))),
        ("macvlan", interfaces(&["macvlan"]), unknown(Unknown::Kind("macvlan".to_owned()))),
        ("hardware", interfaces(&[""]), unknown(Unknown::Kind(String::new()))),
    ];
    for (name, facts, expected) in rows {
        assert_eq!(classify(&facts, false), expected, "{name}");
        assert_eq!(classify(&facts, true), Link::Trusted, "{name}, declared trusted");
    }
}

#[test]
fn pairs_of_one_known_kind_carry_direct_connections() {
    let unknown = || Link::Unknown(Unknown::Elsewhere);
    let kinds = [Link::Isolated, Link::Shared, Link::Trusted, unknown()];
    for one in &kinds {
        for other in &kinds {
            let expected = one == other && *one != unknown();
            assert_eq!(one.carries(other), expected, "{one:?} and {other:?}");
        }
    }
    let unread = Link::Unknown(Unknown::Unread("no answer".to_owned()));
    for one in &kinds {
        assert!(!one.carries(&unread) && !unread.carries(one), "{one:?} and an unread one: nothing new");
        assert!(!one.forbids(&unread) && !unread.forbids(one), "{one:?} and an unread one: open ones stay");
        assert!(kinds.iter().all(|other| one.forbids(other) != one.carries(other)), "{one:?}");
    }
    assert_eq!(kinds.map(|kind| kind.name()), Link::NAMES);
}
