//! Cached verdicts of the daemon.

use ambit_abi::{Lease, SocketAddress, VerdictEntry, VerdictKey, WorkloadNumber};

use crate::clock::now;
use crate::maps::{GENERATIONS, LEASE, VERDICTS};

/// The cached verdict for a connection, if there is one and it still holds.
#[inline(always)]
pub fn cached(source: WorkloadNumber, destination: SocketAddress) -> Option<VerdictEntry> {
    // SAFETY: entries are replaced, not changed in place, and the kernel keeps them until the program ends.
    let verdict = *unsafe { VERDICTS.get(VerdictKey::new(source, destination)) }?;
    (holds(Lease::Verdicts) && is_current(verdict.destination, verdict.generation)).then_some(verdict)
}

/// Whether the daemon has renewed a lease in time.
#[inline(always)]
pub fn holds(lease: Lease) -> bool {
    // SAFETY: the slot is always there; it changes in place, in one write.
    LEASE.get_ptr(lease as u32).is_some_and(|end| unsafe { end.read_volatile() } > now())
}

/// Whether this is the generation of a destination's policy.
#[inline(always)]
pub fn is_current(destination: WorkloadNumber, generation: u64) -> bool {
    // SAFETY: the kernel keeps the entry until the program ends.
    GENERATIONS.get_ptr(destination).is_some_and(|it| unsafe { it.read_volatile() } == generation)
}
