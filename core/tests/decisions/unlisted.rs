//! Which connections may stay that no daemon carries and the kernel does not list.

use ambit_core::model::Authorization;
use ambit_core::unlisted::{Unlisted, may_stay};

use crate::build::{With as _, allow, deny, m, mesh, only, pod, socket, uid};

#[test]
fn unlisted_connections_are_judged() {
    let from_web = || m! { principals: ["cluster.local/ns/shop/sa/default"] };
    let from_there = || m! { source_ips: ["10.1.0.0/16"] };
    let inbound = |suspect| ("10.1.0.2:80", "10.1.0.1:40000", true, suspect);
    let outbound = |to, suspect| ("10.1.0.2:40000", to, false, suspect);
    let rows: Vec<(&str, _, Vec<Authorization>, Option<&str>)> = vec![
        ("accepted, no policy", inbound(true), vec![], None),
        (
            "accepted, mutual TLS is demanded",
            inbound(true),
            vec![allow("shop/a", vec![only(from_web())])],
            Some("ALLOW"),
        ),
        (
            "accepted, suspect, the same",
            inbound(false),
            vec![allow("shop/a", vec![only(from_web())])],
            Some("ALLOW"),
        ),
        (
            "accepted, allowed by its address",
            inbound(true),
            vec![allow("shop/a", vec![only(from_there())])],
            None,
        ),
        (
            "accepted, denied by its address",
            inbound(true),
            vec![deny("shop/a", vec![only(from_there())])],
            Some("denies"),
        ),
        ("made in time, to the mesh", outbound("10.1.0.1:80", false), vec![], None),
        ("suspect, to the mesh", outbound("10.1.0.1:80", true), vec![], Some("past capture")),
        ("suspect, to an excluded port", outbound("10.1.0.1:3306", true), vec![], None),
        ("suspect, out of the mesh", outbound("192.0.2.1:80", true), vec![], None),
    ];
    for (name, (local, remote, inbound, suspect), policies, expected) in rows {
        let mut cart = pod("shop/cart", &["10.1.0.2"]);
        cart.excluded_ports.outbound.insert(3306);
        let mesh = mesh([pod("shop/web", &["10.1.0.1"]), cart], [], policies);
        let connection = Unlisted { local: socket(local), remote: socket(remote), inbound, suspect };
        let found = may_stay(&mesh, &uid("shop/cart"), &connection).err().map(|ended| ended.to_string());
        match expected {
            None => assert_eq!(found, None, "{name}"),
            Some(part) => {
                assert!(found.as_ref().is_some_and(|text| text.contains(part)), "{name}: {found:?}");
            }
        }
    }
}
