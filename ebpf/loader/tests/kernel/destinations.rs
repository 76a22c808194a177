//! Destinations that are captured by port and by the client's namespace.

use std::net::SocketAddr;

use ambit_loader::{Capture, Dataplane, Part};

use crate::lab::{Lab, NODE_V4, NODE_V6, Pod, accept, address, assert_connected, at, local};

/// `shop/80`, `shop/*`, `*/80`.
fn part(text: &str) -> Part {
    let (namespace, port) = text.split_once('/').expect("namespace/port");
    Part { namespace: (namespace != "*").then(|| namespace.to_owned()), port: port.parse().ok() }
}

#[test]
fn connections_are_captured_by_port_and_namespace() {
    let mut lab = Lab::new();
    let dataplane = lab.dataplane();
    let (shop, blog) = (Pod::new(), Pod::new());
    let daemons = [shop.enrol(&dataplane), blog.enrol(&dataplane)];
    for (pod, namespace) in [(&shop, "shop"), (&blog, "blog")] {
        dataplane.set_namespace(pod.cookie, namespace).expect("a namespace");
    }
    let whole: &[&str] = &["shop/80", "shop/81", "blog/80", "blog/81"];
    let rows: [(&str, &[&str], &[&str]); 6] = [
        ("a port", &["*/80"], &["shop/80", "blog/80"]),
        ("a port for one namespace", &["shop/80"], &["shop/80"]),
        ("all ports for one namespace", &["blog/*"], &["blog/80", "blog/81"]),
        ("one port for all, another for one", &["*/80", "blog/81"], &["shop/80", "blog/80", "blog/81"]),
        ("a namespace without pods", &["other/80"], &[]),
        ("nothing", &[], &[]),
    ];
    for node in [NODE_V4, NODE_V6] {
        let check = |name: &str, captured: &[&str]| {
            for (index, (pod, namespace)) in [(&shop, "shop"), (&blog, "blog")].into_iter().enumerate() {
                for port in [80, 81] {
                    let to = at(node, port);
                    let what = format!("{name}: {namespace} to {to}");
                    let listener = pod.outside.listen_at(to);
                    let client = pod.connect(to).unwrap_or_else(|error| panic!("{what}: {error}"));
                    if captured.contains(&format!("{namespace}/{port}").as_str()) {
                        let (server, found) = daemons[index].captured(&dataplane, to);
                        assert_eq!(found, Some(to), "{what}");
                        assert_connected(&what, &client, &server);
                    } else {
                        let (server, seen): (_, SocketAddr) = accept(&listener);
                        assert_eq!(seen, local(&client), "{what}");
                        assert_connected(&what, &client, &server);
                    }
                }
            }
        };
        for (name, parts, captured) in rows {
            let parts = Capture::Parts(parts.iter().copied().map(part).collect());
            dataplane.capture(address(node), &parts).expect("captured in part");
            check(name, captured);
        }
        dataplane.add_destination(address(node)).expect("captured");
        check("the whole address", whole);
        let again = Capture::Parts([part("*/80")].into());
        dataplane.capture(address(node), &again).expect("captured in part");
        check("in part again", &["shop/80", "blog/80"]);
        let next = Dataplane::open(lab.last()).expect("the next daemon");
        assert!(next.destinations().expect("a list").contains(&address(node)));
        next.remove_destination(address(node)).expect("not captured");
        check("no longer", &[]);
        assert_eq!(next.occupancy().expect("maps")["PARTS"], 0, "no part is left");
    }
}
