//! Hand-offs between the two ends of a connection inside a pod.

use ambit_abi::{Handoff, HandoffKey, NetnsCookie, limits};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};

use crate::maps::{HANDOFFS, POD_HANDOFFS};
use crate::quota;

/// Whether a pod has its share of hand-offs.
#[inline(always)]
pub fn exhausted(netns: NetnsCookie) -> bool {
    quota::is_exhausted(&POD_HANDOFFS, netns, limits::SHARED_HANDOFFS)
}

/// Inserts a hand-off; false if the map has no room.
#[inline(always)]
pub fn insert(key: &HandoffKey, handoff: &Handoff) -> bool {
    if HANDOFFS.insert(key, handoff, BPF_NOEXIST.into()).is_ok() {
        quota::add(&POD_HANDOFFS, key.netns, 1);
        return true;
    }
    // Two live connections cannot share a key: the entry is a stale one, which is counted already.
    HANDOFFS.insert(key, handoff, BPF_ANY.into()).is_ok()
}

/// Removes a hand-off, if it is still there.
#[inline(always)]
pub fn remove(key: &HandoffKey) {
    if HANDOFFS.remove(key).is_ok() {
        quota::add(&POD_HANDOFFS, key.netns, -1);
    }
}
