use std::net::Ipv4Addr;

use super::*;

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(number).into()
}

fn fill(clients: &Clients, from: IpAddr, most: Most) -> Vec<Place> {
    std::iter::from_fn(|| clients.enter(from, most)).collect()
}

#[test]
fn one_client_leaves_room_for_others() {
    let rows = [
        ("its own bound first", Most { of_all: 1000, of_one: 10 }, 10),
        ("no more than are free", Most { of_all: 10, of_one: 100 }, 5),
        ("nothing allowed", Most { of_all: 0, of_one: 10 }, 0),
    ];
    for (name, most, expected) in rows {
        let clients = Clients::default();
        let places = fill(&clients, address(1), most);
        assert_eq!((places.len(), clients.connections()), (expected, expected), "{name}");
        drop(places);
        assert!(clients.0.lock().of.is_empty(), "{name}: nothing is left");
        assert_eq!(clients.connections(), 0, "{name}");
    }
}

#[test]
fn many_clients_leave_room_for_the_next() {
    let (clients, most) = (Clients::default(), Most { of_all: 1024, of_one: 128 });
    let mut held = Vec::new();
    for attacker in 0..9 {
        held.push(fill(&clients, address(attacker), most));
    }
    assert!(held.iter().all(|places| !places.is_empty()));
    assert!(clients.connections() < 1024, "{}", clients.connections());
    assert!(clients.admit(address(77), most), "an honest one");
    assert!(!clients.admit(address(0), most));
}
