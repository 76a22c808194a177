//! Many connections: no entries are left, one pod does not use up another's share, and lost records are
//! counted.

use std::time::Duration;

use ambit_loader::{KernelReason, Lease, RecordKind};
use aya::maps::{HashMap, Map, MapData};

use crate::lab::{accept, at, counter, local, until};
use crate::leaks::pins;
use crate::neighbours::{CLIENT, LEASE, Neighbours, OTHER, SERVER, V4, V6};

/// Opens and closes connections, alternating between four orders.
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
fn no_entries_left_after_many_connections() {
    const EACH: usize = 10_000;
    let world = Neighbours::new();
    let before = world.dataplane.occupancy().expect("maps");
    std::thread::scope(|scope| {
        scope.spawn(|| churn(&world, V4[SERVER], EACH));
        scope.spawn(|| churn(&world, V6[SERVER], EACH));
    });
    world.until_no_flow_is_tracked();
    let mut after = world.dataplane.occupancy().expect("maps");
    assert_eq!(after.remove("VERDICTS"), Some(2), "one for each address");
    assert_eq!(after, before.into_iter().filter(|(map, _)| *map != "VERDICTS").collect());
    assert_eq!(world.flow_count(CLIENT), 0, "the count is zero");
    // The ring buffer has no room for all records: each is in it or is counted as lost.
    let rest = world.remaining_records();
    let mut counted = world.dataplane.counters().expect("counters");
    counted.retain(|(_, count)| *count > 0);
    let count = |reason| counted.iter().find(|(it, _)| *it == reason).map_or(0, |(_, count)| *count);
    let lost = count(KernelReason::RecordLost);
    assert!(lost > 0, "no record was lost of {}", rest.len());
    // A connection whose entry was removed before it was established has one record more. It happens rarely,
    // on a busy machine.
    let gone = count(KernelReason::FlowGone);
    assert!(gone < 10, "{gone} entries were removed early");
    // A segment that was sent twice, because its acknowledgement was late, may arrive when the socket is
    // gone. `sk_lookup` sees no flags and refuses it as it would a new connection, with a record.
    let late = count(KernelReason::PlaintextRefused);
    assert!(late < 10, "{late} segments were refused");
    let total = rest.len() as u64 + lost;
    assert_eq!(
        total,
        2 * 2 * EACH as u64 + gone + late,
        "two records for each connection; counted: {counted:?}"
    );
    for pod in &world.pods {
        world.dataplane.release(pod.cookie).expect("released");
    }
    let left: Vec<_> =
        world.dataplane.occupancy().expect("maps").into_iter().filter(|(_, held)| *held > 0).collect();
    assert_eq!(left, [("DESTINATIONS", destinations())], "only the daemon's destinations");
}

/// The lab's destinations, both addresses of each pod, and both of the service.
fn destinations() -> usize {
    2 + 2 * V4.len() + 2
}

#[test]
fn flows_at_the_pods_limit_are_carried_by_the_daemon() {
    let world = Neighbours::new();
    let app = world.pods[SERVER].listen_at(at(V4[SERVER], 8080));
    let to = local(&app);
    world.allow(CLIENT, SERVER, to);
    world.allow(OTHER, SERVER, to);
    // As if so many flows were open.
    world.set_flow_count(CLIENT, u64::MAX >> 1);
    let client = world.pods[CLIENT].connect(to).expect("captured");
    assert_eq!(world.daemons[CLIENT].captured(&world.dataplane, to).1, Some(to), "the daemon carries it");
    drop(client);
    let other = world.pods[OTHER].connect(to).expect("direct");
    let (server, from) = accept(&app);
    assert_eq!(world.flows().len(), 1, "another pod is not affected");
    assert_eq!(world.flow_count(OTHER), 1);
    drop((other, server));
    world.record(RecordKind::Closed, from);
    world.until_no_flow_is_tracked();

    // A native connection that cannot be tracked goes to the daemon, which can close it.
    world.set_flow_count(SERVER, u64::MAX >> 1);
    world.open(SERVER);
    world.dataplane.release(world.pods[OTHER].cookie).expect("released");
    let other = world.pods[OTHER].connect(to).expect("accepted by the daemon");
    drop((other, accept(&world.daemons[SERVER].plaintext_v4)));
    assert_eq!(world.flows(), []);
    assert_eq!(counter(&world.dataplane, KernelReason::FlowsExhausted), 0);
    world.set_flow_count(CLIENT, 0);
    world.dataplane.renew_lease(Lease::Verdicts, LEASE).expect("a lease");
    let client = world.pods[CLIENT].connect(to).expect("direct again");
    let (server, _) = accept(&app);
    until("the flow is tracked", || world.flows().len() == 1);
    drop((client, server));
    world.until_no_flow_is_tracked();
}

#[test]
fn flows_of_an_earlier_enrolment_do_not_use_up_the_limit() {
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
    world.until_no_flow_is_tracked();
    assert_eq!(world.flow_count(SERVER).cast_signed(), -1, "it was counted for the earlier enrolment");
    world.open(SERVER);
    let late = world.pods[OTHER].connect(local(&app)).expect("native");
    let (server, _) = accept(&app);
    assert_eq!(world.flows().len(), 1, "the flow is tracked");
    drop((late, server));
    world.until_no_flow_is_tracked();
}

#[test]
fn instances_track_their_own_flows_only() {
    let (first, second) = (Neighbours::new(), Neighbours::new());
    for (world, other) in [(&first, &second), (&second, &first)] {
        let app = world.pods[SERVER].listen_at(at(V4[SERVER], 8080));
        world.allow(CLIENT, SERVER, local(&app));
        let client = world.pods[CLIENT].connect(local(&app)).expect("direct");
        let (server, from) = accept(&app);
        assert_eq!(world.flows().len(), 1);
        assert_eq!(other.flows(), [], "not a flow of the other instance");
        drop((client, server));
        world.record(RecordKind::Closed, from);
        world.until_no_flow_is_tracked();
        assert_eq!(other.remaining_records(), []);
        world.remaining_records();
    }
}

impl Neighbours {
    fn counts(&self) -> HashMap<MapData, u64, u64> {
        let pin = pins(self.settings()).into_iter().find(|pin| pin.ends_with("POD_FLOWS")).expect("pinned");
        let map = Map::HashMap(MapData::from_pin(pin).expect("the map"));
        HashMap::try_from(map).expect("a hash map")
    }

    /// A pod's count of tracked flows.
    fn flow_count(&self, pod: usize) -> u64 {
        self.counts().get(&self.pods[pod].cookie.0, 0).expect("a count")
    }

    fn set_flow_count(&self, pod: usize, count: u64) {
        self.counts().insert(self.pods[pod].cookie.0, count, 0).expect("a count");
    }
}
