//! The choice of a service's endpoint.

use ambit_abi::{AffinityKey, Service, SlotKey, SocketAddress, WorkloadNumber};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;

use crate::maps::{ENDPOINTS, SERVICES, STICKY};

/// Where a connection to an address goes.
#[derive(Clone, Copy)]
pub enum Choice {
    /// To the address itself: it is not a service whose endpoints the kernel chooses.
    Itself,
    /// To this endpoint.
    Endpoint(SocketAddress),
    /// The daemon chooses.
    Daemon,
}

/// Chooses an endpoint.
#[inline(always)]
pub fn choose(source: WorkloadNumber, destination: SocketAddress) -> Choice {
    // SAFETY: here and below: entries are replaced, not changed in place, and the kernel keeps them until the
    // program ends.
    let Some(service) = (unsafe { SERVICES.get(destination) }) else { return Choice::Itself };
    if service.flags & Service::AFFINITY != 0 {
        // SAFETY: as above.
        return match unsafe { STICKY.get(AffinityKey::new(source, destination)) } {
            Some(endpoint) => Choice::Endpoint(*endpoint),
            None => Choice::Daemon,
        };
    }
    let slot = ((random() * u64::from(service.slots)) >> 32) as u32;
    // SAFETY: as above.
    match unsafe { ENDPOINTS.get(SlotKey { table: service.table, slot, reserved: 0 }) } {
        Some(slot) if random() < u64::from(slot.threshold) => Choice::Endpoint(slot.own),
        Some(slot) => Choice::Endpoint(slot.alias),
        None => Choice::Daemon,
    }
}

/// 32 random bits.
#[inline(always)]
fn random() -> u64 {
    // SAFETY: the helper takes nothing.
    u64::from(unsafe { bpf_get_prandom_u32() } as u32)
}
