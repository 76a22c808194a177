use super::*;
use crate::testing::workload;

#[test]
fn peers_see_the_address_of_the_clients_pod() {
    let dual = workload("web", &["10.0.0.1", "fd00::1"]);
    let v4 = workload("web", &["10.0.0.1"]);
    let rows = [
        ("IPv4", Some(&dual), "127.0.0.1:4000", "10.96.0.1:80", "10.0.0.1:4000"),
        ("IPv6", Some(&dual), "[::1]:4000", "[fd00::96]:80", "[fd00::1]:4000"),
        ("a family the pod has not", Some(&v4), "[::1]:4000", "[fd00::96]:80", "10.0.0.1:4000"),
        ("an unknown pod", None, "127.0.0.1:4000", "10.96.0.1:80", "127.0.0.1:4000"),
    ];
    for (name, source, client, destination, expected) in rows {
        let seen = client_of(source, client.parse().unwrap(), destination.parse().unwrap());
        assert_eq!(seen, expected.parse().unwrap(), "{name}");
    }
}
