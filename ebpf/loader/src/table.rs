//! The choice of an endpoint in constant time: Vose's alias method, in integers.

use std::net::SocketAddr;

use ambit_abi::{Slot, SocketAddress};

/// How the kernel chooses an endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// At random, by weight. If all weights are 0, the daemon chooses.
    Weighted(Vec<(SocketAddr, u32)>),
    /// Each client has the endpoint set by [`Dataplane::set_affinity`](crate::Dataplane::set_affinity). Until
    /// then the daemon chooses.
    Affinity,
}

const WHOLE: u128 = 1 << 32;

pub(crate) fn socket_address(address: SocketAddr) -> SocketAddress {
    SocketAddress::new(address.ip().into(), address.port())
}

/// The slots of a table. Shares are exact to one part in 2^32.
pub(crate) fn slots(endpoints: &[(SocketAddr, u32)]) -> Vec<Slot> {
    let endpoints: Vec<(SocketAddress, u128)> = endpoints
        .iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(address, weight)| (socket_address(*address), u128::from(*weight)))
        .collect();
    // The width of a slot is the sum of all weights, that of an endpoint its weight times the number of
    // slots.
    let width: u128 = endpoints.iter().map(|(_, weight)| weight).sum();
    let mut widths: Vec<u128> =
        endpoints.iter().map(|(_, weight)| weight * endpoints.len() as u128).collect();
    let mut slots: Vec<Slot> =
        endpoints.iter().map(|(own, _)| Slot { threshold: u32::MAX, own: *own, alias: *own }).collect();
    let (mut narrow, mut wide): (Vec<usize>, Vec<usize>) =
        (0..widths.len()).partition(|index| widths[*index] < width);
    // Each slot that its own endpoint does not fill is filled up by an endpoint wider than a slot.
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
mod tests;
