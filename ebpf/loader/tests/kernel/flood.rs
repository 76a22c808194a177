//! Many connections: nothing is left of them, nobody takes what is another's, and what is lost is counted.

use std::time::Duration;

use ambit_loader::{Path, Reason, RecordKind};
use aya::maps::{HashMap, Map, MapData};

use crate::lab::{accept, at, local, until};
use crate::leaks::pins;
use crate::neighbours::{CLIENT, LEASE, Neighbours, OTHER, SERVER, V4, V6};
use crate::outbound::counter;

/// Opens and closes connections, by turns in every order.
fn churn(world: &Neighbours, address: &str, count: usize) {
    let app = world.pods[SERVER].listen(address);
    let to = local(&app);
    world.allow(CLIENT, SERVER, to);
    for round in 0..count {
        let client = world.pods[CLIENT].connect(to).expect("direct");
        let (server, _) = accept(&app);
        match round % 4 {
            0 => drop((client, server)),
            1 => drop((server, client)),
            2 => {
                client.set_linger(Some(Duration::ZERO)).expect("reset on close");
                drop((client, server));
            }
            _ => {
                server.set_linger(Some(Duration::ZERO)).expect("reset on close");
                drop((server, client));
            }
        }
    }
}

#[test]
fn nothing_is_left_of_many_connections() {
    const EACH: usize = 10_000;
    let world = Neighbours::new();
    let before = world.dataplane.occupancy().expect("maps");
    std::thread::scope(|scope| {
        scope.spawn(|| churn(&world, V4[SERVER], EACH));
        scope.spawn(|| churn(&world, V6[SERVER], EACH));
    });
    world.until_none_is_listed();
    let mut after = world.dataplane.occupancy().expect("maps");
    assert_eq!(after.remove("VERDICTS"), Some(2), "one for each address");
    assert_eq!(after, before.into_iter().filter(|(map, _)| *map != "VERDICTS").collect());
    assert_eq!(world.listed(CLIENT), 0, "nor is one counted");
    // The ring buffer holds fewer records than there were: each is there or counted as lost.
    let rest = world.rest();
    let lost = counter(&world.dataplane, Reason::RecordLost);
    assert!(lost > 0, "{} records fit", rest.len());
    assert_eq!(rest.len() as u64 + lost, 2 * 2 * EACH as u64, "one when opened and one when closed");
    for pod in &world.pods {
        world.dataplane.release(pod.cookie).expect("released");
    }
    let left: Vec<_> =
        world.dataplane.occupancy().expect("maps").into_iter().filter(|(_, held)| *held > 0).collect();
    assert_eq!(left, [("DESTINATIONS", before_destinations())], "only what the daemon itself put there");
}

/// The usual destinations, both addresses of each pod, and those of the service.
fn before_destinations() -> usize {
    2 + 2 * V4.len() + 2
}

#[test]
fn a_pods_list_has_an_end() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen_at(at(V4[SERVER], 8080));
    let to = local(&app);
    world.allow(CLIENT, SERVER, to);
    world.allow(OTHER, SERVER, to);
    // As if so many were open.
    world.set_listed(CLIENT, u64::MAX >> 1);
    let client = world.pods[CLIENT].connect(to).expect("captured");
    assert_eq!(world.daemons[CLIENT].captured(&world.dataplane, to).1, Some(to), "the daemon carries it");
    drop(client);
    let other = world.pods[OTHER].connect(to).expect("direct");
    let (server, from) = accept(&app);
    assert_eq!(world.flows().len(), 1, "another pod goes on");
    assert_eq!(world.listed(OTHER), 1);
    drop((other, server));
    world.record(RecordKind::Closed, from);
    world.until_none_is_listed();

    // A native one passes unlisted, is counted, and has its records all the same.
    world.set_listed(SERVER, u64::MAX >> 1);
    world.open(SERVER);
    world.dataplane.release(world.pods[OTHER].cookie).expect("released");
    let other = world.pods[OTHER].connect(to).expect("native");
    let (server, from) = accept(&app);
    assert_eq!(world.flows(), []);
    assert_eq!(counter(&world.dataplane, Reason::FlowsExhausted), 1);
    drop((other, server));
    assert_eq!(world.record(RecordKind::Closed, from).path, Path::Native);
    world.set_listed(CLIENT, 0);
    world.dataplane.renew_lease(LEASE).expect("a lease");
    let client = world.pods[CLIENT].connect(to).expect("direct again");
    let (server, _) = accept(&app);
    until("it is listed", || world.flows().len() == 1);
    drop((client, server));
    world.until_none_is_listed();
}

#[test]
fn instances_do_not_see_each_others_connections() {
    let (first, second) = (Neighbours::new(), Neighbours::new());
    for (world, other) in [(&first, &second), (&second, &first)] {
        let app = world.pods[SERVER].listen_at(at(V4[SERVER], 8080));
        world.allow(CLIENT, SERVER, local(&app));
        let client = world.pods[CLIENT].connect(local(&app)).expect("direct");
        let (server, from) = accept(&app);
        assert_eq!(world.flows().len(), 1);
        assert_eq!(other.flows(), [], "the same addresses, but another instance");
        drop((client, server));
        world.record(RecordKind::Closed, from);
        world.until_none_is_listed();
        assert_eq!(other.rest(), []);
        world.rest();
    }
}

impl Neighbours {
    fn counts(&self) -> HashMap<MapData, u64, u64> {
        let pin = pins(self.settings()).into_iter().find(|pin| pin.ends_with("POD_FLOWS")).expect("pinned");
        let map = Map::HashMap(MapData::from_pin(pin).expect("the map"));
        HashMap::try_from(map).expect("a hash map")
    }

    /// How many listed connections count as a pod's.
    fn listed(&self, pod: usize) -> u64 {
        self.counts().get(&self.pods[pod].cookie.0, 0).expect("a count")
    }

    fn set_listed(&self, pod: usize, count: u64) {
        self.counts().insert(self.pods[pod].cookie.0, count, 0).expect("a count");
    }
}
