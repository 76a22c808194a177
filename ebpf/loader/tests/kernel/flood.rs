//! Many connections: nothing is left of them, nobody takes what is another's, and what is lost is counted.

use std::time::Duration;

use ambit_loader::{Inbound, InboundMode, KernelReason, RecordKind};
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
    let lost = counter(&world.dataplane, KernelReason::RecordLost);
    assert!(lost > 0, "{} records fit", rest.len());
    // One whose entry was gone when it was established, which happened once in many runs on a busy machine,
    // has one more.
    let gone = counter(&world.dataplane, KernelReason::FlowGone);
    assert!(gone < 10, "{gone} entries were gone");
    assert_eq!(rest.len() as u64 + lost, 2 * 2 * EACH as u64 + gone, "one when opened and one when closed");
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

    // One that would be native and could not be listed is the daemon's, which can end it.
    world.set_listed(SERVER, u64::MAX >> 1);
    world.open(SERVER);
    world.dataplane.release(world.pods[OTHER].cookie).expect("released");
    let other = world.pods[OTHER].connect(to).expect("taken by the daemon");
    drop((other, accept(&world.daemons[SERVER].plaintext_v4)));
    assert_eq!(world.flows(), []);
    assert_eq!(counter(&world.dataplane, KernelReason::FlowsExhausted), 0);
    world.set_listed(CLIENT, 0);
    world.dataplane.renew_lease(LEASE).expect("a lease");
    let client = world.pods[CLIENT].connect(to).expect("direct again");
    let (server, _) = accept(&app);
    until("it is listed", || world.flows().len() == 1);
    drop((client, server));
    world.until_none_is_listed();
}

#[test]
fn what_ends_after_a_pod_left_and_came_back_does_not_use_its_list_up() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen_at(at(V4[SERVER], 8080));
    world.open(SERVER);
    world.dataplane.release(world.pods[OTHER].cookie).expect("released");
    let early = world.pods[OTHER].connect(local(&app)).expect("native");
    let (server, _) = accept(&app);
    assert_eq!(world.flows().len(), 1);
    world.dataplane.release(world.pods[SERVER].cookie).expect("released");
    let _daemon = world.pods[SERVER].enrol(&world.dataplane);
    drop((early, server));
    world.until_none_is_listed();
    assert_eq!(world.listed(SERVER).cast_signed(), -1, "it was counted in the earlier enrolment");
    world.open(SERVER);
    let late = world.pods[OTHER].connect(local(&app)).expect("native");
    let (server, _) = accept(&app);
    assert_eq!(world.flows().len(), 1, "it is listed, so that a policy can end it");
    drop((late, server));
    world.until_none_is_listed();
}

#[test]
fn a_full_table_of_ports_lets_nobody_in_unasked() {
    let world = Neighbours::new();
    let all = (0..=u16::MAX).map(|port| (port, InboundMode::Open)).collect();
    let greedy = Inbound { default: InboundMode::Strict, ports: all, probe_ports: [].into() };
    world.dataplane.set_inbound(world.pods[OTHER].cookie, &greedy).expect("just enough room");
    let app = world.pods[SERVER].listen_at(at(V4[SERVER], 8080));
    world.open(SERVER);
    let next = Inbound {
        default: InboundMode::Open,
        ports: [(8080, InboundMode::Strict)].into(),
        probe_ports: [].into(),
    };
    world.dataplane.set_inbound(world.pods[SERVER].cookie, &next).expect_err("there is no room");
    world.dataplane.release(world.pods[CLIENT].cookie).expect("released");
    let client = world.pods[CLIENT].connect(local(&app)).expect("taken by the daemon");
    drop((client, accept(&world.daemons[SERVER].plaintext_v4)));
    world.dataplane.release(world.pods[OTHER].cookie).expect("released");
    world.dataplane.set_inbound(world.pods[SERVER].cookie, &next).expect("room again");
    world.pods[CLIENT].connect(local(&app)).expect_err("refused by the kernel");
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
