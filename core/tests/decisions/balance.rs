//! Balancing: shares by capacity, preference by locality, health.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambit_core::balance::pick;
use ambit_core::model::{Health, LoadBalancing, LoadBalancingMode, Locality, LocalityScope, Workload};
use proptest::prelude::*;

use crate::build::pod;

use LocalityScope::{Network, Node, Region, Zone};

fn endpoint(name: &str, locality: &str, capacity: u32) -> Arc<Workload> {
    let mut parts = locality.split('/').map(Into::into);
    let mut part = || parts.next().unwrap_or_else(|| "".into());
    let (region, zone, node) = (part(), part(), part());
    Arc::new(Workload {
        locality: Locality { region, zone, subzone: "".into() },
        node,
        capacity,
        ..pod(&format!("shop/{name}"), &["10.1.0.1"])
    })
}

fn unready(endpoint: &Workload) -> Arc<Workload> {
    Arc::new(Workload { health: Health::Unhealthy, ..endpoint.clone() })
}

fn rule(mode: LoadBalancingMode, routing_preference: &[LocalityScope]) -> LoadBalancing {
    LoadBalancing { mode, routing_preference: routing_preference.to_vec(), allow_unhealthy: false }
}

/// How often each endpoint is picked over dice spread evenly over their range.
fn shares(
    endpoints: &[Arc<Workload>],
    client: &Workload,
    rule: &LoadBalancing,
    rolls: u64,
) -> BTreeMap<String, u64> {
    let mut shares = BTreeMap::new();
    for roll in 0..rolls {
        let dice = roll * (u64::MAX / rolls) + u64::MAX / rolls / 2;
        if let Some(picked) = pick(|| endpoints.iter(), client, rule, dice) {
            *shares.entry(picked.name.to_string()).or_default() += 1;
        }
    }
    shares
}

fn picked(endpoints: &[Arc<Workload>], rule: &LoadBalancing) -> Vec<String> {
    let client = endpoint("client", "eu/a/n1", 1);
    shares(endpoints, &client, rule, 64).into_keys().collect()
}

#[test]
fn preference() {
    let near = || endpoint("near", "eu/a/n1", 1);
    let zone = || endpoint("zone", "eu/a/n2", 1);
    let region = || endpoint("region", "eu/b/n3", 1);
    let far = || endpoint("far", "us/a/n4", 1);
    let all = || vec![near(), zone(), region(), far()];
    let none: [&str; 0] = [];
    let anything = LoadBalancingMode::Unspecified;
    let failover = LoadBalancingMode::Failover;
    let strict = LoadBalancingMode::Strict;
    let rows: Vec<(&str, Vec<Arc<Workload>>, LoadBalancing, &[&str])> = vec![
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
            vec![unready(&near()), zone(), far()],
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
        ("strict does not fail over", vec![unready(&near()), zone()], rule(strict, &[Node]), &none),
        ("strict without scopes takes all", all(), rule(strict, &[]), &["far", "near", "region", "zone"]),
        (
            "those that are not ready are left out",
            vec![unready(&near()), far()],
            rule(anything, &[]),
            &["far"],
        ),
        ("none is ready", vec![unready(&near())], rule(anything, &[]), &none),
        (
            "publishNotReadyAddresses takes them too",
            vec![unready(&near()), far()],
            LoadBalancing { allow_unhealthy: true, ..rule(anything, &[]) },
            &["far", "near"],
        ),
        (
            "publishNotReadyAddresses with failover",
            vec![unready(&near()), far()],
            LoadBalancing { allow_unhealthy: true, ..rule(failover, &[Region]) },
            &["near"],
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
        assert_eq!(picked(&endpoints, &rule), expected, "{name}");
    }
}

proptest! {
    /// Each endpoint's share is its capacity's, to within one roll: with evenly spread dice nothing is left to chance.
    #[test]
    fn shares_follow_capacity(capacities in prop::collection::vec(0_u32..50, 1..8)) {
        let endpoints: Vec<_> =
            capacities.iter().enumerate().map(|(n, c)| endpoint(&format!("e{n}"), "", *c)).collect();
        let client = endpoint("client", "", 1);
        let total: u64 = capacities.iter().map(|c| u64::from(*c)).sum();
        let rolls = 10_000;
        let shares = shares(&endpoints, &client, &rule(LoadBalancingMode::Unspecified, &[]), rolls);
        prop_assert_eq!(shares.values().sum::<u64>(), if total == 0 { 0 } else { rolls });
        for (n, capacity) in capacities.iter().enumerate() {
            let got = shares.get(&format!("e{n}")).copied().unwrap_or(0);
            let due = rolls * u64::from(*capacity) / total.max(1);
            prop_assert!(got.abs_diff(due) <= 2, "endpoint {} of {:?}: {} of {}", n, capacities, got, due);
        }
    }

    /// With random dice the shares differ from the capacities by no more than chance: chi-squared below the value
    /// that is exceeded once in a million tries (df = 3).
    #[test]
    fn random_dice_give_fair_shares(seed in any::<[u8; 32]>()) {
        let capacities = [1_u32, 2, 3, 4];
        let endpoints = capacities.map(|c| endpoint(&format!("e{c}"), "", c));
        let client = endpoint("client", "", 1);
        let rolls = 4_000_u32;
        let mut dice = proptest::test_runner::TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &seed);
        let mut counts = [0_u32; 4];
        for _ in 0..rolls {
            let picked = pick(|| endpoints.iter(), &client, &LoadBalancing::default(), dice.next_u64()).expect("one");
            counts[picked.capacity as usize - 1] += 1;
        }
        let chi: f64 = capacities.iter().zip(counts).map(|(capacity, count)| {
            let due = f64::from(rolls * capacity) / 10.0;
            (f64::from(count) - due).powi(2) / due
        }).sum();
        prop_assert!(chi < 30.7, "chi² {} for {:?}", chi, counts);
    }

    #[test]
    fn extreme_dice_are_in_range(capacity in 1_u32.., dice in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()]) {
        let endpoints = [endpoint("a", "", capacity), endpoint("b", "", u32::MAX)];
        let client = endpoint("client", "", 1);
        prop_assert!(pick(|| endpoints.iter(), &client, &LoadBalancing::default(), dice).is_some());
    }
}
