//! Counts of a pod's entries in shared maps, and their limits.

use ambit_abi::NetnsCookie;
use aya_ebpf::maps::HashMap;

use crate::atomic;

/// Whether a pod has as many entries as it may have. One that is not enrolled may have none.
///
/// A pod that was released and enrolled again counts from zero while entries of its earlier enrolment are
/// still to be removed, so a count may be below zero for a while.
#[inline(always)]
pub fn is_exhausted(counts: &HashMap<NetnsCookie, u64>, netns: NetnsCookie, limit: u64) -> bool {
    counts.get_ptr(netns).is_none_or(|count| {
        // SAFETY: the kernel keeps the entry until the program ends.
        unsafe { count.read_volatile() }.cast_signed() >= limit.cast_signed()
    })
}

/// Changes a pod's count.
#[inline(always)]
pub fn add(counts: &HashMap<NetnsCookie, u64>, netns: NetnsCookie, change: i64) {
    if let Some(count) = counts.get_ptr_mut(netns) {
        // SAFETY: a value of a map, which the kernel keeps until the program ends.
        unsafe { atomic::add(count, change) };
    }
}
