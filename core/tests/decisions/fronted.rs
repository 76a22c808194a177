//! What a waypoint serves.

use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::fronted::{Fronted, fronted};
use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{Service, Waypoint, WaypointDestination};
use ambit_core::testing::{behind, pod, service, service_key, uid};

fn with_waypoint(mut service: Service, name: &str) -> Change {
    service.waypoint = Some(Waypoint::new(WaypointDestination::Hostname(service_key(name))));
    Change::PutService(Arc::new(service))
}

#[test]
fn a_waypoint_serves_what_it_stands_in_front_of() {
    let own = service("shop/waypoint", &["10.96.0.1"], &[(15008, 15008)]);
    let mut behind_it = pod("shop/cart-1", &["10.1.0.2"]);
    behind_it.waypoint = Some(Waypoint::new(WaypointDestination::Hostname(service_key("shop/waypoint"))));
    let mut by_address = service("shop/by-address", &["10.96.0.4"], &[(80, 8080)]);
    by_address.waypoint = Some(Waypoint::new(WaypointDestination::Address([10, 1, 0, 1].into())));
    let mut mesh = Mesh::new();
    mesh.apply([
        Change::PutWorkload(Arc::new(behind(pod("shop/waypoint-1", &["10.1.0.1"]), &own))),
        Change::PutService(Arc::new(own)),
        Change::PutWorkload(Arc::new(behind_it)),
        Change::PutWorkload(Arc::new(pod("shop/free", &["10.1.0.3"]))),
        with_waypoint(service("shop/cart", &["10.96.0.2"], &[(80, 8080)]), "shop/waypoint"),
        with_waypoint(service("shop/others", &["10.96.0.3"], &[(80, 8080)]), "shop/other"),
        Change::PutService(Arc::new(by_address)),
        Change::PutService(Arc::new(service("shop/free", &["10.96.0.5"], &[(80, 8080)]))),
    ]);
    let waypoint = mesh.workload(&uid("shop/waypoint-1")).expect("it is in the mesh");
    for (name, address, expected) in [
        ("its service", "10.96.0.2:80", "service cart 80"),
        ("by a v4-mapped address", "[::ffff:10.96.0.2]:80", "service cart 80"),
        ("by the waypoint's own address", "10.96.0.4:80", "service by-address 80"),
        ("its workload", "10.1.0.2:9090", "workload cart-1 9090"),
        ("a port that the service does not have", "10.96.0.2:81", "service_port_unknown"),
        ("a service of another waypoint", "10.96.0.3:80", "not_fronted"),
        ("a service without one", "10.96.0.5:80", "not_fronted"),
        ("a workload without one", "10.1.0.3:80", "not_fronted"),
        ("nobody", "10.9.9.9:80", "destination_unknown"),
    ] {
        let address: SocketAddr = address.parse().expect("an address");
        let told = match fronted(&mesh, waypoint, "shop", address) {
            Ok(Fronted::Service { service, port }) => format!("service {} {port}", service.name),
            Ok(Fronted::Workload { workload, address }) => {
                format!("workload {} {}", workload.name, address.port())
            }
            Err(denial) => denial.reason().to_string(),
        };
        assert_eq!(told, expected, "{name}");
    }
}
