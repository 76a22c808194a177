use std::collections::BTreeMap;

use super::*;

fn endpoint(index: usize) -> SocketAddr {
    SocketAddr::new([10, 0, 0, 1].into(), u16::try_from(index + 1).expect("a port"))
}

/// Each endpoint's share of all draws.
fn shares(slots: &[Slot]) -> BTreeMap<SocketAddress, u128> {
    let mut shares = BTreeMap::new();
    for slot in slots {
        *shares.entry(slot.own).or_default() += u128::from(slot.threshold);
        *shares.entry(slot.alias).or_default() += WHOLE - u128::from(slot.threshold);
    }
    shares
}

#[test]
fn shares_match_weights() {
    let rows: [(&str, &[u32]); 9] = [
        ("one", &[1]),
        ("equal", &[1, 1, 1]),
        ("one to three", &[1, 3]),
        ("one of weight 0", &[0, 5, 5]),
        ("very different", &[1, 1_000_000]),
        ("greatest weights", &[u32::MAX, u32::MAX, 1]),
        ("many", &[7; 1000]),
        ("primes", &[2, 3, 5, 7, 11, 13]),
        ("all of weight 0", &[0, 0]),
    ];
    for (name, weights) in rows {
        let endpoints: Vec<_> =
            weights.iter().enumerate().map(|(index, weight)| (endpoint(index), *weight)).collect();
        let slots = slots(&endpoints);
        let shares = shares(&slots);
        let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        assert_eq!(slots.len(), weights.iter().filter(|weight| **weight > 0).count(), "{name}");
        for (address, weight) in endpoints {
            let share = shares.get(&socket_address(address)).copied().unwrap_or(0);
            let exact = WHOLE * slots.len() as u128 * u128::from(weight) / sum.max(1);
            // Each slot rounds by less than one.
            assert!(share.abs_diff(exact) <= slots.len() as u128 + 1, "{name}: {share} is not {exact}");
        }
    }
}
