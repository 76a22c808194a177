//! Connections from processes of the node itself, listed when they connect. Only these may be probes: an
//! address of the node is no proof, since others' connections are masqueraded to it.

use ambit_abi::{KernelReason, NetnsCookie, PortRule, Tuple};
use aya_ebpf::bindings::{BPF_ANY, BPF_SOCK_OPS_STATE_CB_FLAG};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockOpsContext;

use crate::maps::{HOST, LOCALS, PROBES, count};
use crate::operation::{add_flags, netns, outgoing, socket_cookie};

/// Lists a connection that is about to send its SYN, if its process is in the node's network namespace and
/// its destination is a pod's address.
#[inline(always)]
pub fn connecting(context: &SockOpsContext) {
    if netns(context) != host() {
        return;
    }
    let tuple = outgoing(context);
    if LOCALS.get_ptr(tuple.server).is_none() {
        return;
    }
    if PROBES.insert(tuple, socket_cookie(context), BPF_ANY.into()).is_err() {
        return count(KernelReason::ProbesExhausted);
    }
    if !add_flags(context, BPF_SOCK_OPS_STATE_CB_FLAG) {
        // Without the callback nothing would remove the entry, and another connection could use it.
        let _ = PROBES.remove(tuple);
        count(KernelReason::ProbesExhausted);
    }
}

/// A socket without state of the mesh closed.
#[inline(always)]
pub fn closed(context: &SockOpsContext) {
    let tuple = outgoing(context);
    // SAFETY: the kernel keeps the entry until the program ends.
    if PROBES.get_ptr(tuple).is_some_and(|cookie| unsafe { *cookie } == socket_cookie(context)) {
        let _ = PROBES.remove(tuple);
    }
}

/// Whether a connection is from a process of the node to a port that the pod declares as a probe.
#[inline(always)]
pub fn is_probe(rule: Option<&PortRule>, tuple: &Tuple) -> bool {
    rule.is_some_and(|rule| rule.probe != 0) && PROBES.get_ptr(tuple).is_some()
}

/// The node's network namespace.
#[inline(always)]
fn host() -> NetnsCookie {
    // SAFETY: the slot is always there; it changes in place, in one write.
    let told = HOST.get_ptr(0).map_or(NetnsCookie(0), |cookie| unsafe { cookie.read_volatile() });
    if told != NetnsCookie(0) {
        return told;
    }
    // SAFETY: without a context the helper answers for the machine's first namespace.
    NetnsCookie(unsafe { bpf_get_netns_cookie(core::ptr::null_mut()) })
}
