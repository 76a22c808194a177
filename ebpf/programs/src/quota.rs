//! Counts of a pod's entries in shared maps, and its share: as many entries as are free.

use ambit_abi::NetnsCookie;
use aya_ebpf::maps::HashMap;

use crate::atomic;

/// Whether a pod has as many entries as it may have, of a map that shares out so many. One that is not
/// enrolled may have none.
///
/// A pod that was released and enrolled again counts from zero while entries of its earlier enrolment are
/// still to be removed, so a count may be below zero for a while.
#[inline(always)]
pub fn is_exhausted(counts: &HashMap<NetnsCookie, u64>, netns: NetnsCookie, shared: u64) -> bool {
    let (Some(own), Some(all)) = (read(counts, netns), read(counts, NetnsCookie::ALL)) else { return true };
    own >= shared.cast_signed() - all
}

#[inline(always)]
fn read(counts: &HashMap<NetnsCookie, u64>, key: NetnsCookie) -> Option<i64> {
    // SAFETY: the kernel keeps the entry until the program ends.
    counts.get_ptr(key).map(|count| unsafe { count.read_volatile() }.cast_signed())
}

/// Changes a pod's count, and the sum of all.
#[inline(always)]
pub fn add(counts: &HashMap<NetnsCookie, u64>, netns: NetnsCookie, change: i64) {
    for key in [netns, NetnsCookie::ALL] {
        if let Some(count) = counts.get_ptr_mut(key) {
            // SAFETY: a value of a map, which the kernel keeps until the program ends.
            unsafe { atomic::add(count, change) };
        }
    }
}
