//! The choice of an endpoint in constant time: Vose's alias method, in whole numbers.

use std::net::SocketAddr;

use ambit_abi::{Place, Slot};

/// How the kernel chooses an endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// At random, by weight. Without any weight nothing is chosen: the daemon decides.
    Weighted(Vec<(SocketAddr, u32)>),
    /// Each client keeps the one that [`Dataplane::stick`](crate::Dataplane::stick) gave it; until then the
    /// daemon decides.
    Affinity,
}

const WHOLE: u128 = 1 << 32;

pub(crate) fn place(address: SocketAddr) -> Place {
    Place::new(address.ip().into(), address.port())
}

/// The slots of a table. Shares are exact to one part in 2^32.
pub(crate) fn slots(endpoints: &[(SocketAddr, u32)]) -> Vec<Slot> {
    let endpoints: Vec<(Place, u128)> = endpoints
        .iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(address, weight)| (place(*address), u128::from(*weight)))
        .collect();
    // A slot is as wide as all weights together, and an endpoint as wide as its weight times the slots.
    let width: u128 = endpoints.iter().map(|(_, weight)| weight).sum();
    let mut widths: Vec<u128> =
        endpoints.iter().map(|(_, weight)| weight * endpoints.len() as u128).collect();
    let mut slots: Vec<Slot> =
        endpoints.iter().map(|(own, _)| Slot { threshold: u32::MAX, own: *own, alias: *own }).collect();
    let (mut narrow, mut wide): (Vec<usize>, Vec<usize>) =
        (0..widths.len()).partition(|index| widths[*index] < width);
    // Each slot that its own endpoint does not fill is filled up by one that has too much.
    while let (Some(small), Some(large)) = (narrow.pop(), wide.last().copied()) {
        slots[small].threshold = u32::try_from(widths[small] * WHOLE / width).unwrap_or(u32::MAX);
        slots[small].alias = slots[large].own;
        widths[large] -= width - widths[small];
        if widths[large] < width {
            wide.pop();
            narrow.push(large);
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn endpoint(index: usize) -> SocketAddr {
        SocketAddr::new([10, 0, 0, 1].into(), u16::try_from(index + 1).expect("a port"))
    }

    /// What each endpoint gets of all draws.
    fn shares(slots: &[Slot]) -> BTreeMap<Place, u128> {
        let mut shares = BTreeMap::new();
        for slot in slots {
            *shares.entry(slot.own).or_default() += u128::from(slot.threshold);
            *shares.entry(slot.alias).or_default() += WHOLE - u128::from(slot.threshold);
        }
        shares
    }

    #[test]
    fn shares_are_the_weights() {
        let rows: [(&str, &[u32]); 9] = [
            ("one", &[1]),
            ("equal", &[1, 1, 1]),
            ("one to three", &[1, 3]),
            ("one without weight", &[0, 5, 5]),
            ("very different", &[1, 1_000_000]),
            ("the greatest", &[u32::MAX, u32::MAX, 1]),
            ("many", &[7; 1000]),
            ("primes", &[2, 3, 5, 7, 11, 13]),
            ("nothing", &[0, 0]),
        ];
        for (name, weights) in rows {
            let endpoints: Vec<_> =
                weights.iter().enumerate().map(|(index, weight)| (endpoint(index), *weight)).collect();
            let slots = slots(&endpoints);
            let shares = shares(&slots);
            let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            assert_eq!(slots.len(), weights.iter().filter(|weight| **weight > 0).count(), "{name}");
            for (address, weight) in endpoints {
                let share = shares.get(&place(address)).copied().unwrap_or(0);
                let exact = WHOLE * slots.len() as u128 * u128::from(weight) / sum.max(1);
                // Each slot rounds by less than one.
                assert!(share.abs_diff(exact) <= slots.len() as u128 + 1, "{name}: {share} is not {exact}");
            }
        }
    }
}
