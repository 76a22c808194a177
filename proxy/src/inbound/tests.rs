use ambit_core::mesh::Change;

use super::*;
use crate::testing::{endpoint_of, mesh, put, service, workload};

#[test]
fn forwarded_address_accepted_only_if_it_is_the_peers_own() {
    let rows = [
        ("its own address", Some("10.0.0.1:4000"), "10.0.0.1:999", "10.0.0.1:4000"),
        ("another's", Some("10.0.0.2:4000"), "10.0.0.1:999", "10.0.0.1:999"),
        ("loopback", Some("127.0.0.1:4000"), "10.0.0.1:999", "10.0.0.1:999"),
        ("its own, mapped", Some("[::ffff:10.0.0.1]:4000"), "10.0.0.1:999", "10.0.0.1:4000"),
        ("mapped on the socket", Some("10.0.0.1:4000"), "[::ffff:10.0.0.1]:999", "10.0.0.1:4000"),
        ("no port", Some("10.0.0.1:0"), "10.0.0.1:999", "10.0.0.1:999"),
        ("nothing", None, "10.0.0.1:999", "10.0.0.1:999"),
    ];
    for (name, said, address, expected) in rows {
        let identity = workload("web", &[]).identity();
        let peer = Peer { identity, address: address.parse().unwrap() };
        let request = ConnectRequest {
            forwarded: said.map(|said| said.parse().unwrap()),
            ..ConnectRequest::to("10.0.1.1:8080".parse().unwrap())
        };
        assert_eq!(forwarded(&request, &peer), expected.parse().unwrap(), "{name}");
    }
}

#[test]
fn source_named_only_if_its_certificate_agrees() {
    let mesh = mesh([
        put(workload("web", &["10.0.0.1"])),
        Change::PutService(Arc::new(service("cart", "10.96.0.1"))),
        put(endpoint_of(workload("cart", &["10.0.1.1"]), "cart")),
    ]);
    let (web, other) = (workload("web", &[]).identity(), workload("other", &[]).identity());
    let rows = [
        ("its certificate", Some(web), "10.0.0.1", Some("web")),
        ("another's certificate", Some(other), "10.0.0.1", None),
        ("plaintext", None, "10.0.0.1", Some("web")),
        ("an address of no workload", None, "10.0.0.77", None),
    ];
    for (name, identity, address, expected) in rows {
        let client = SocketAddr::new(address.parse().unwrap(), 4000);
        let application = "10.0.1.1:8080".parse().unwrap();
        let party = |address, identity| Party { identity, ..Party::at(address) };
        let mut info = ConnectionInfo {
            direction: Direction::Inbound,
            path: Path::Tunnel,
            mutual_tls: identity.is_some(),
            source: party(client, identity),
            destination: party(application, None),
            hbone_address: None,
            client: None,
            service: None,
        };
        name_parties(&mut info, &mesh, &crate::testing::uid("cart"), client, application);
        assert_eq!(info.source.workload.as_ref().map(|workload| &*workload.name), expected, "{name}");
        assert_eq!(info.destination.workload.as_ref().map(|workload| &*workload.name), Some("cart"));
        assert_eq!(info.service.as_ref().map(|service| &*service.name), Some("cart"));
    }
}
