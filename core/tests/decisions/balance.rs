//! Load balancing: eligible endpoints, their shares, and session affinity.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ambit_core::balance::{Avoid, Choice, sticky, table};
use ambit_core::mesh::Mesh;
use ambit_core::model::{
    Affinity, Health, LoadBalancing, LoadBalancingMode, Locality, LocalityScope, Service, TunnelProtocol,
    Waypoint, WaypointDestination, Workload, WorkloadUid,
};
use ambit_core::outlier::Ejected;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::build::{behind, ip, mesh, pod, service, service_key, socket, uid};

use LocalityScope::{Cluster, Network, Node, Region, Subzone, Zone};

const ASKED: &str = "10.96.0.1:80";

fn cart(rule: LoadBalancing) -> Service {
    Service { load_balancing: rule, ..service("shop/cart", &["10.96.0.1"], &[(80, 8080)]) }
}

fn placed(workload: Workload, place: &str) -> Workload {
    let mut parts = place.split('/').map(Into::into);
    let mut part = || parts.next().unwrap_or_else(|| "".into());
    let (region, zone, node) = (part(), part(), part());
    Workload { locality: Locality { region, zone, subzone: "".into() }, node, ..workload }
}

/// An endpoint of the service `shop/cart` at a place `region/zone/node`.
fn endpoint(name: &str, place: &str, capacity: u32) -> Workload {
    let workload = placed(pod(&format!("shop/{name}"), &["10.1.0.1"]), place);
    Workload { capacity, ..behind(workload, &cart(LoadBalancing::default())) }
}

fn unready(endpoint: Workload) -> Workload {
    Workload { health: Health::Unhealthy, ..endpoint }
}

fn draining(endpoint: Workload) -> Workload {
    Workload { health: Health::Draining, ..endpoint }
}

fn rule(mode: LoadBalancingMode, routing_preference: &[LocalityScope]) -> LoadBalancing {
    LoadBalancing { mode, routing_preference: routing_preference.to_vec(), ..LoadBalancing::default() }
}

fn client() -> Workload {
    placed(pod("shop/client", &["10.1.0.7"]), "eu/a/n1")
}

fn ejected(names: &[&str]) -> Ejected {
    names.iter().map(|name| (service_key("shop/cart"), 80, uid(&format!("shop/{name}")))).collect()
}

/// A choice of `cart`'s endpoint for [`client`] in a mesh of these endpoints.
struct Scene {
    mesh: Mesh,
    client: Workload,
    service: Service,
}

impl Scene {
    fn new(endpoints: &[Workload], rule: &LoadBalancing) -> Self {
        let service = cart(rule.clone());
        Self { mesh: mesh(endpoints.iter().cloned(), [service.clone()], []), client: client(), service }
    }

    fn choice<'a>(&'a self, avoid: Avoid<'a>) -> Choice<'a> {
        let Self { mesh, client, service } = self;
        Choice { mesh, client, service, asked: socket(ASKED), avoid }
    }

    /// How often each endpoint is picked over evenly spread random numbers.
    fn shares(&self, avoid: Avoid, rolls: u64) -> BTreeMap<String, u64> {
        let mut shares = BTreeMap::new();
        for roll in 0..rolls {
            let random = roll * (u64::MAX / rolls) + u64::MAX / rolls / 2;
            if let Some(picked) = self.choice(avoid).pick(random) {
                *shares.entry(picked.workload.name.to_string()).or_default() += 1;
            }
        }
        shares
    }

    fn picked(&self, ejected: &Ejected, tried: &[&str]) -> Vec<String> {
        let tried: Vec<_> = tried.iter().map(|name| uid(&format!("shop/{name}"))).collect();
        self.shares(Avoid { ejected, tried: &tried }, 64).into_keys().collect()
    }
}

#[test]
fn endpoints_are_preferred_by_health_and_locality() {
    let near = || endpoint("near", "eu/a/n1", 1);
    let zone = || endpoint("zone", "eu/a/n2", 1);
    let region = || endpoint("region", "eu/b/n3", 1);
    let far = || endpoint("far", "us/a/n4", 1);
    let all = || vec![near(), zone(), region(), far()];
    let none: [&str; 0] = [];
    let anything = LoadBalancingMode::Unspecified;
    let failover = LoadBalancingMode::Failover;
    let strict = LoadBalancingMode::Strict;
    let rows: Vec<(&str, Vec<Workload>, LoadBalancing, &[&str])> = vec![
        ("no endpoints", vec![], rule(anything, &[]), &none),
        ("no preference takes all", all(), rule(anything, &[]), &["far", "near", "region", "zone"]),
        (
            "scopes without a mode are no preference",
            all(),
            rule(anything, &[Region]),
            &["far", "near", "region", "zone"],
        ),
        ("failover takes the best rank", all(), rule(failover, &[Network, Region, Zone, Node]), &["near"]),
        (
            "failover to the zone",
            vec![zone(), region(), far()],
            rule(failover, &[Region, Zone, Node]),
            &["zone"],
        ),
        ("failover to the region", vec![region(), far()], rule(failover, &[Region, Zone, Node]), &["region"]),
        ("failover to anywhere", vec![far()], rule(failover, &[Region, Zone, Node]), &["far"]),
        (
            "failover counts from the most significant scope",
            vec![region(), far()],
            rule(failover, &[Zone, Region]),
            &["far"],
        ),
        ("failover shares a rank", all(), rule(failover, &[Region, Zone]), &["near", "zone"]),
        (
            "failover passes over those that are not ready",
            vec![unready(near()), zone(), far()],
            rule(failover, &[Region, Zone, Node]),
            &["zone"],
        ),
        (
            "strict takes those that share every scope",
            all(),
            rule(strict, &[Region, Zone]),
            &["near", "zone"],
        ),
        ("strict takes nothing less", vec![region(), far()], rule(strict, &[Region, Zone]), &none),
        ("strict on the node", all(), rule(strict, &[Node]), &["near"]),
        ("strict does not fail over", vec![unready(near()), zone()], rule(strict, &[Node]), &none),
        ("strict without scopes takes all", all(), rule(strict, &[]), &["far", "near", "region", "zone"]),
        (
            "those that are not ready are left out",
            vec![unready(near()), far()],
            rule(anything, &[]),
            &["far"],
        ),
        ("none is ready", vec![unready(near())], rule(anything, &[]), &none),
        (
            "publishNotReadyAddresses takes them too",
            vec![unready(near()), far()],
            LoadBalancing { allow_unhealthy: true, ..rule(anything, &[]) },
            &["far", "near"],
        ),
        (
            "publishNotReadyAddresses with failover",
            vec![unready(near()), far()],
            LoadBalancing { allow_unhealthy: true, ..rule(failover, &[Region]) },
            &["near"],
        ),
        (
            "those that end are left out while there are others",
            vec![draining(near()), far()],
            rule(anything, &[]),
            &["far"],
        ),
        (
            "draining ones serve where no other does",
            vec![draining(near()), unready(far())],
            rule(anything, &[]),
            &["near"],
        ),
        (
            "health goes before the place",
            vec![draining(near()), far()],
            rule(failover, &[Region, Zone, Node]),
            &["far"],
        ),
        (
            "those that end fail over too",
            vec![draining(zone()), draining(far())],
            rule(failover, &[Region, Zone, Node]),
            &["zone"],
        ),
        (
            "on the node, one that ends serves before those of other nodes",
            vec![draining(near()), zone()],
            rule(strict, &[Node]),
            &["near"],
        ),
        (
            "publishNotReadyAddresses makes no difference between them",
            vec![draining(near()), unready(zone()), far()],
            LoadBalancing { allow_unhealthy: true, ..rule(anything, &[]) },
            &["far", "near", "zone"],
        ),
        (
            "capacity 0 takes nothing",
            vec![endpoint("off", "eu/a/n1", 0), far()],
            rule(failover, &[Region]),
            &["far"],
        ),
        ("all of capacity 0", vec![endpoint("off", "eu/a/n1", 0)], rule(anything, &[]), &none),
    ];
    for (name, endpoints, rule, expected) in rows {
        assert_eq!(Scene::new(&endpoints, &rule).picked(&Ejected::NONE, &[]), expected, "{name}");
    }
}

#[test]
fn ejected_and_tried_endpoints_are_avoided() {
    let all = [
        endpoint("near-1", "eu/a/n1", 1),
        endpoint("near-2", "eu/a/n1", 1),
        endpoint("zone-1", "eu/a/n2", 1),
        endpoint("zone-2", "eu/a/n2", 1),
    ];
    let anything = rule(LoadBalancingMode::Unspecified, &[]);
    let failover = rule(LoadBalancingMode::Failover, &[Zone, Node]);
    let strict = rule(LoadBalancingMode::Strict, &[Node]);
    let none: &[&str] = &[];
    let everybody: &[&str] = &["near-1", "near-2", "zone-1", "zone-2"];
    let rows = [
        (
            "one is ejected",
            &anything,
            &["near-1"] as &[&str],
            none,
            &["near-2", "zone-1", "zone-2"] as &[&str],
        ),
        ("all are ejected: none is", &anything, everybody, none, everybody),
        ("the others of its rank come before failover", &failover, &["near-1"], none, &["near-2"]),
        ("failover when a rank is ejected", &failover, &["near-1", "near-2"], none, &["zone-1", "zone-2"]),
        ("failover when all are ejected", &failover, everybody, none, &["near-1", "near-2"]),
        ("strict does not fail over", &strict, &["near-1", "near-2"], none, &["near-1", "near-2"]),
        ("one that was tried, nor those of its node", &anything, none, &["near-1"], &["zone-1", "zone-2"]),
        ("both nodes were tried", &anything, none, &["near-1", "zone-1"], &["near-2", "zone-2"]),
        ("the rank counts more than the node", &failover, none, &["near-1"], &["near-2"]),
        ("failover when a rank was tried", &failover, none, &["near-1", "near-2"], &["zone-1", "zone-2"]),
        ("strict when all were tried", &strict, none, &["near-1", "near-2"], none),
        ("all were tried", &anything, none, everybody, none),
        (
            "an ejected one rather than none",
            &anything,
            &["near-1"],
            &["near-2", "zone-1", "zone-2"],
            &["near-1"],
        ),
        ("an ejected one rather than one that was tried", &strict, &["near-1"], &["near-2"], &["near-1"]),
    ];
    for (name, rule, out, tried, expected) in rows {
        assert_eq!(Scene::new(&all, rule).picked(&ejected(out), tried), expected, "{name}");
    }
    let other_port: Ejected = [(service_key("shop/cart"), 81, uid("shop/near-1"))].into_iter().collect();
    assert_eq!(Scene::new(&all, &anything).picked(&other_port, &[]), everybody, "ejected for another port");
}

#[test]
fn the_kernels_choice_is_accepted_if_eligible() {
    let at = |name, place, address| Workload { addresses: vec![ip(address)], ..endpoint(name, place, 1) };
    let endpoints = [
        at("near", "eu/a/n1", "10.1.0.1"),
        at("far", "us/a/n2", "10.1.0.2"),
        unready(at("unready", "eu/a/n1", "10.1.0.3")),
        draining(at("draining", "eu/a/n1", "10.1.0.4")),
    ];
    let anything = rule(LoadBalancingMode::Unspecified, &[]);
    let failover = rule(LoadBalancingMode::Failover, &[Region]);
    let strict = rule(LoadBalancingMode::Strict, &[Region]);
    let not_ready = LoadBalancing { allow_unhealthy: true, ..anything.clone() };
    let rows = [
        ("an endpoint", &anything, "10.1.0.2:8080", &[] as &[&str], true),
        ("written as IPv6", &anything, "[::ffff:10.1.0.2]:8080", &[], true),
        ("another port", &anything, "10.1.0.2:80", &[], false),
        ("no endpoint's address", &anything, "10.1.0.9:8080", &[], false),
        ("one that is not ready", &anything, "10.1.0.3:8080", &[], false),
        ("one that need not be ready", &not_ready, "10.1.0.3:8080", &[], true),
        ("a rank that is not the best any more", &failover, "10.1.0.2:8080", &[], true),
        ("out of strict bounds", &strict, "10.1.0.2:8080", &[], false),
        ("within strict bounds", &strict, "10.1.0.1:8080", &[], true),
        ("ejected", &anything, "10.1.0.2:8080", &["far"], false),
        ("one that is ending", &anything, "10.1.0.4:8080", &[], false),
        (
            "one that is ending, while others are only ejected",
            &anything,
            "10.1.0.4:8080",
            &["far", "near"],
            false,
        ),
        ("one that is ending and need not be ready", &not_ready, "10.1.0.4:8080", &[], true),
        ("ejected like all others", &anything, "10.1.0.2:8080", &["far", "near"], true),
    ];
    for (name, rule, chosen, out, expected) in rows {
        let scene = Scene::new(&endpoints, rule);
        let ejected = ejected(out);
        let accepted = scene.choice(Avoid { ejected: &ejected, tried: &[] }).accept(socket(chosen));
        assert_eq!(accepted.is_some(), expected, "{name}");
    }
    let scene = Scene::new(&[draining(endpoints[0].clone()), unready(endpoints[1].clone())], &anything);
    assert!(
        scene.choice(Avoid::NONE).accept(socket("10.1.0.1:8080")).is_some(),
        "no endpoint but a draining one"
    );
}

#[test]
fn a_table_is_empty_where_the_kernel_must_not_choose() {
    let near = || Workload { addresses: vec![ip("10.1.0.1")], ..endpoint("near", "eu/a/n1", 3) };
    let far = || Workload { addresses: vec![ip("10.1.0.2")], ..endpoint("far", "us/a/n2", 2) };
    let waypoint = Waypoint::new(WaypointDestination::Address(ip("10.1.9.9")));
    let anything = || cart(LoadBalancing::default());
    let with = |rule| cart(rule);
    let failover = || with(rule(LoadBalancingMode::Failover, &[Region, Zone]));
    let other = |name, port| service(name, &["10.96.0.1"], &[(port, port)]);
    let neighbour = |place| placed(pod("shop/neighbour", &["10.1.0.8"]), place);
    let both: &[(&str, u32)] = &[("10.1.0.2:8080", 2), ("10.1.0.1:8080", 3)];
    let only_near: &[(&str, u32)] = &[("10.1.0.1:8080", 3)];
    let none: &[(&str, u32)] = &[];
    let rows = [
        ("shares", anything(), vec![], vec![], both),
        ("the best rank", failover(), vec![], vec![], only_near),
        (
            "affinity",
            with(LoadBalancing { affinity: Affinity::ClientIp, ..LoadBalancing::default() }),
            vec![],
            vec![],
            none,
        ),
        ("passthrough", with(rule(LoadBalancingMode::Passthrough, &[])), vec![], vec![], none),
        ("a waypoint", Service { waypoint: Some(waypoint), ..anything() }, vec![], vec![], none),
        ("another service there", anything(), vec![other("shop/other", 80)], vec![], none),
        ("another service there, before it", anything(), vec![other("a/other", 80)], vec![], none),
        ("another service with another port", anything(), vec![other("shop/other", 81)], vec![], both),
        ("a neighbour of the same place", failover(), vec![], vec![neighbour("eu/a/n1")], only_near),
        ("a neighbour that says another zone", failover(), vec![], vec![neighbour("eu/b/n1")], none),
        ("a neighbour's zone where that is no matter", anything(), vec![], vec![neighbour("eu/b/n1")], both),
        (
            "a neighbour in another network",
            anything(),
            vec![],
            vec![Workload { network: "n2".into(), ..neighbour("eu/a/n1") }],
            none,
        ),
        ("a zone on another node", failover(), vec![], vec![neighbour("eu/b/n2")], only_near),
    ];
    for (name, service, services, neighbours, expected) in rows {
        let workloads = [client(), near(), far()].into_iter().chain(neighbours);
        let mesh = mesh(workloads, [service.clone()].into_iter().chain(services), []);
        let expected: Vec<_> = expected.iter().map(|(address, share)| (socket(address), *share)).collect();
        let got = table(&mesh, &client(), &service, socket(ASKED), &Ejected::NONE);
        assert_eq!(got, expected, "{name}");
    }
    let service = anything();
    let mesh = mesh([client(), near(), far()], [service.clone()], []);
    let got = table(&mesh, &client(), &service, socket(ASKED), &ejected(&["far"]));
    assert_eq!(got, [(socket("10.1.0.1:8080"), 3)], "without the ejected");
    let got = table(&mesh, &client(), &service, socket("10.96.0.1:81"), &Ejected::NONE);
    assert_eq!(got, [], "a port that the service lacks");
}

/// What an endpoint is made of in the property tests.
type Spec = (u32, Health, bool, [u8; 6]);

fn specs() -> impl Strategy<Value = Vec<Spec>> {
    let place = prop::array::uniform6(0_u8..2);
    let health = prop_oneof![
        6 => Just(Health::Healthy),
        1 => Just(Health::Draining),
        1 => Just(Health::Unhealthy),
    ];
    prop::collection::vec((0_u32..6, health, prop::bool::weighted(0.3), place), 0..7)
}

fn place(place: [u8; 6], workload: Workload) -> Workload {
    let [region, zone, subzone, node, cluster, _] = place.map(|part| part.to_string().into());
    Workload { locality: Locality { region, zone, subzone }, node, cluster, ..workload }
}

fn made((number, (capacity, health, _, at)): (usize, &Spec)) -> Workload {
    let address = ip(&format!("10.1.0.{}", number + 1));
    // One in two to the sixth shares no network with the client; the same one that shares nothing else.
    let network = if *at == [1; 6] { "elsewhere" } else { "" };
    let name = format!("e{number}");
    place(
        *at,
        Workload {
            addresses: vec![address],
            health: *health,
            network: network.into(),
            ..endpoint(&name, "", *capacity)
        },
    )
}

fn rules() -> impl Strategy<Value = LoadBalancing> {
    let scopes =
        prop::sample::subsequence(vec![Network, Region, Zone, Subzone, Node, Cluster], 0..6).prop_shuffle();
    let modes = [LoadBalancingMode::Unspecified, LoadBalancingMode::Strict, LoadBalancingMode::Failover];
    (prop::sample::select(modes.to_vec()), scopes, any::<bool>()).prop_map(
        |(mode, routing_preference, allow_unhealthy)| LoadBalancing {
            mode,
            routing_preference,
            allow_unhealthy,
            ..LoadBalancing::default()
        },
    )
}

/// The shares, computed in the simplest way: by lists.
fn reference(
    endpoints: &[Workload],
    client: &Workload,
    rule: &LoadBalancing,
    out: &BTreeSet<WorkloadUid>,
) -> Vec<(SocketAddr, u32)> {
    let equal = |endpoint: &Workload, scope: &LocalityScope| {
        let of = |w: &Workload| match scope {
            Region => w.locality.region.to_string(),
            Zone => w.locality.zone.to_string(),
            Subzone => w.locality.subzone.to_string(),
            Node => w.node.to_string(),
            Cluster => w.cluster.to_string(),
            Network => w.network.to_string(),
        };
        of(endpoint) == of(client)
    };
    let with = |healths: &[Health]| -> Vec<&Workload> {
        let usable =
            |w: &&Workload| w.capacity > 0 && w.network == client.network && healths.contains(&w.health);
        endpoints.iter().filter(usable).collect()
    };
    let by_rule = |usable: Vec<&Workload>| -> Vec<(SocketAddr, u32)> {
        // Ranks from best to worst: the first n scopes are all equal.
        for rank in (0..=rule.routing_preference.len()).rev() {
            let found: Vec<_> = usable
                .iter()
                .filter(|w| match rule.mode {
                    LoadBalancingMode::Unspecified => true,
                    _ => rule.routing_preference[..rank].iter().all(|scope| equal(w, scope)),
                })
                .map(|w| (SocketAddr::new(w.addresses[0], 8080), w.capacity))
                .collect();
            if !found.is_empty() || rule.mode != LoadBalancingMode::Failover {
                return found;
            }
        }
        Vec::new()
    };
    let of_tier = |usable: Vec<&Workload>| {
        let standing = by_rule(usable.iter().copied().filter(|w| !out.contains(&w.uid)).collect());
        if standing.is_empty() { by_rule(usable) } else { standing }
    };
    if rule.allow_unhealthy {
        return of_tier(with(&[Health::Healthy, Health::Draining, Health::Unhealthy]));
    }
    let healthy = of_tier(with(&[Health::Healthy]));
    if healthy.is_empty() { of_tier(with(&[Health::Healthy, Health::Draining])) } else { healthy }
}

proptest! {
    /// The table equals the reference, and `pick` has exactly its shares over all numbers on a grid as fine
    /// as the total.
    #[test]
    fn shares_equal_the_reference(specs in specs(), rule in rules()) {
        let endpoints: Vec<_> = specs.iter().enumerate().map(made).collect();
        let out = specs.iter().zip(&endpoints).filter(|(spec, _)| spec.2);
        let out: BTreeSet<_> = out.map(|(_, workload)| workload.uid.clone()).collect();
        let ejected: Ejected = out.iter().map(|uid| (service_key("shop/cart"), 80, uid.clone())).collect();
        let client = place([0; 6], pod("shop/client", &["10.1.0.7"]));
        // The endpoints are not enrolled, so that the table does not consider them as clients of the node.
        let scene = Scene { client: client.clone(), ..Scene::new(&endpoints, &rule) };
        let apart = endpoints.iter().map(|w| Workload { protocol: TunnelProtocol::None, ..w.clone() });
        let scene = Scene { mesh: mesh(apart, [scene.service.clone()], []), ..scene };
        let expected = reference(&endpoints, &client, &rule, &out);
        let table = table(&scene.mesh, &client, &scene.service, socket(ASKED), &ejected);
        prop_assert_eq!(&table, &expected);

        let total: u64 = expected.iter().map(|(_, share)| u64::from(*share)).sum();
        let mut counts: BTreeMap<SocketAddr, u64> = BTreeMap::new();
        for step in 0..total.max(1) {
            let scaled = ((u128::from(step) << 64) + (1 << 63)) / u128::from(total.max(1));
            let random = u64::try_from(scaled).expect("in range");
            if let Some(picked) = scene.choice(Avoid { ejected: &ejected, tried: &[] }).pick(random) {
                *counts.entry(picked.address).or_default() += 1;
            }
        }
        let expected = expected.into_iter().map(|(address, share)| (address, u64::from(share)));
        let expected: BTreeMap<_, _> = expected.collect();
        prop_assert_eq!(counts, expected);
    }

    /// Random choices differ from the capacities by no more than chance: chi-squared stays below the value
    /// that is exceeded once in a million tries (df = 3).
    #[test]
    fn random_choices_follow_the_shares(seed in any::<[u8; 32]>()) {
        let capacities = [1_u32, 2, 3, 4];
        let endpoints = capacities.map(|capacity| endpoint(&format!("e{capacity}"), "", capacity));
        let scene = Scene::new(&endpoints, &LoadBalancing::default());
        let rolls = 4_000_u32;
        let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut counts = [0_u32; 4];
        for _ in 0..rolls {
            let picked = scene.choice(Avoid::NONE).pick(random.next_u64()).expect("one");
            counts[picked.workload.capacity as usize - 1] += 1;
        }
        let chi = chi_squared(&capacities, &counts);
        prop_assert!(chi < 30.7, "chi² {} for {:?}", chi, counts);
    }

    #[test]
    fn extreme_random_numbers_choose_an_endpoint(
        capacity in 1_u32..,
        random in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()],
    ) {
        let endpoints = [endpoint("a", "", capacity), endpoint("b", "", u32::MAX)];
        let scene = Scene::new(&endpoints, &LoadBalancing::default());
        prop_assert!(scene.choice(Avoid::NONE).pick(random).is_some());
    }

    /// When an endpoint is removed, only its clients move. When it returns, they are its clients again.
    #[test]
    fn only_the_clients_of_a_removed_endpoint_move(
        capacities in prop::collection::vec(1_u32..5, 2..8),
        lost in any::<prop::sample::Index>(),
    ) {
        let spec = |capacity: u32| (capacity, Health::Healthy, false, [0; 6]);
        let endpoints = capacities.iter().enumerate().map(|(n, capacity)| made((n, &spec(*capacity))));
        let endpoints: Vec<_> = endpoints.collect();
        let lost = lost.index(endpoints.len());
        let before = Scene::new(&endpoints, &affinity());
        let mut fewer = endpoints.clone();
        let gone = fewer.remove(lost);
        let after = Scene::new(&fewer, &affinity());
        let out: Ejected = [(service_key("shop/cart"), 80, gone.uid.clone())].into_iter().collect();
        for number in 0..200 {
            let client = pod(&format!("shop/client-{number}"), &["10.1.0.7"]);
            let of = |scene: &Scene, ejected: &Ejected| {
                sticky(&scene.mesh, &client, &scene.service, socket(ASKED), ejected).expect("one")
            };
            let (was, is) = (of(&before, &Ejected::NONE), of(&after, &Ejected::NONE));
            prop_assert_ne!(is.ip(), gone.addresses[0]);
            if was.ip() != gone.addresses[0] {
                prop_assert_eq!(was, is, "client {}", number);
            }
            prop_assert_eq!(of(&before, &out), is, "an ejected endpoint is one that left");
        }
    }
}

fn affinity() -> LoadBalancing {
    LoadBalancing { affinity: Affinity::ClientIp, ..LoadBalancing::default() }
}

fn chi_squared(weights: &[u32], counts: &[u32]) -> f64 {
    let (total, rolls) = (weights.iter().sum::<u32>(), counts.iter().sum::<u32>());
    let terms = weights.iter().zip(counts).map(|(weight, count)| {
        let due = f64::from(rolls) * f64::from(*weight) / f64::from(total);
        (f64::from(*count) - due).powi(2) / due
    });
    terms.sum()
}

/// The clients' names are fixed and realistic, so the result is deterministic.
#[test]
fn affinity_gives_each_endpoint_its_share_of_clients() {
    let capacities = [1_u32, 2, 3, 4];
    let endpoints: Vec<_> =
        (0..4).map(|n| made((n, &(capacities[n], Health::Healthy, false, [0; 6])))).collect();
    let scene = Scene::new(&endpoints, &affinity());
    let mut counts = [0_u32; 4];
    for number in 0..20_000 {
        let client = pod(&format!("shop/client-{number}"), &["10.1.0.7"]);
        let scene = Scene { client, service: scene.service.clone(), mesh: scene.mesh.clone() };
        let sticky = scene.choice(Avoid::NONE).make(number).expect("one");
        assert_eq!(
            Some(sticky),
            scene.choice(Avoid::NONE).make(!number),
            "the random number does not matter"
        );
        counts[sticky.workload.capacity as usize - 1] += 1;
    }
    let chi = chi_squared(&capacities, &counts);
    assert!(chi < 30.7, "chi² {chi} for {counts:?}");
}

#[test]
fn affinity_follows_preference_and_failures() {
    let endpoints =
        [endpoint("near", "eu/a/n1", 1), endpoint("far-1", "us/a/n2", 1), endpoint("far-2", "us/a/n3", 1)];
    let rule = LoadBalancing { affinity: Affinity::ClientIp, ..rule(LoadBalancingMode::Failover, &[Region]) };
    let scene = Scene::new(&endpoints, &rule);
    let name = |avoid: Avoid| scene.choice(avoid).sticky().map(|endpoint| endpoint.workload.name.to_string());
    assert_eq!(name(Avoid::NONE).as_deref(), Some("near"));
    let mut tried = Vec::new();
    while let Some(next) = name(Avoid { tried: &tried, ..Avoid::NONE }) {
        tried.push(uid(&format!("shop/{next}")));
    }
    assert_eq!(tried[0], uid("shop/near"));
    assert_eq!(tried.iter().collect::<BTreeSet<_>>().len(), 3, "each once: {tried:?}");
}
