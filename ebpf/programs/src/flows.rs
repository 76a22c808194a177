//! Tracked flows: the connections that no daemon carries.

use ambit_abi::{FlowEntry, NetnsCookie, Tuple, limits};
use aya_ebpf::bindings::{BPF_ANY, BPF_EXIST, BPF_NOEXIST};

use crate::maps::{FLOWS, POD_FLOWS};
use crate::quota;

/// Whether a pod has its share of tracked flows.
#[inline(always)]
pub fn exhausted(netns: NetnsCookie) -> bool {
    quota::is_exhausted(&POD_FLOWS, netns, limits::SHARED_FLOWS)
}

/// The pod whose count includes an entry: the one that inserted it.
#[inline(always)]
fn holder(flow: &FlowEntry) -> NetnsCookie {
    if flow.client_netns == NetnsCookie(0) { flow.server_netns } else { flow.client_netns }
}

/// Tracks an outgoing flow, before its SYN is sent. An established flow of another client is not replaced: no
/// connection with the same 4-tuple can exist beside it.
#[inline(always)]
pub fn track_outgoing(tuple: &Tuple, flow: &FlowEntry) -> bool {
    if FLOWS.insert(tuple, flow, BPF_NOEXIST.into()).is_ok() {
        quota::add(&POD_FLOWS, holder(flow), 1);
        return true;
    }
    // SAFETY: the kernel keeps the entry until the program ends.
    let taken = FLOWS
        .get_ptr(tuple)
        .is_none_or(|old| unsafe { (*old).server_cookie != 0 && (*old).source != flow.source });
    !taken && replace(tuple, flow)
}

/// Completes an outgoing flow when its server's end is established. The entry is replaced, not changed: the
/// memory of the old one may belong to another connection already. If the client has just removed it, it is
/// inserted again. False: there is no room.
#[inline(always)]
#[must_use]
pub fn track_accepted(tuple: &Tuple, flow: &FlowEntry) -> bool {
    FLOWS.insert(tuple, flow, BPF_EXIST.into()).is_ok() || track_established(tuple, flow)
}

/// Tracks a flow that is established, also where its pod has used up its share meanwhile: what is established
/// must be known. An entry with the same 4-tuple is stale and is replaced. False: there is no room at all.
#[inline(always)]
#[must_use]
pub fn track_established(tuple: &Tuple, flow: &FlowEntry) -> bool {
    if FLOWS.insert(tuple, flow, BPF_NOEXIST.into()).is_ok() {
        quota::add(&POD_FLOWS, holder(flow), 1);
        return true;
    }
    replace(tuple, flow)
}

#[inline(always)]
fn replace(tuple: &Tuple, flow: &FlowEntry) -> bool {
    // SAFETY: the kernel keeps the entry until the program ends.
    let Some(old) = FLOWS.get_ptr(tuple).map(|old| holder(unsafe { &*old })) else { return false };
    if FLOWS.insert(tuple, flow, BPF_ANY.into()).is_err() {
        return false;
    }
    quota::add(&POD_FLOWS, old, -1);
    quota::add(&POD_FLOWS, holder(flow), 1);
    true
}

/// The client's socket closed. An established flow stays tracked until the server's socket closes: a client
/// cannot hide a connection from the next change of policy by closing its end.
#[inline(always)]
pub fn client_closed(tuple: &Tuple, cookie: u64) {
    // SAFETY: the kernel keeps the entry until the program ends.
    if let Some(flow) = FLOWS.get_ptr(tuple)
        && unsafe { (*flow).client_cookie == cookie && (*flow).server_cookie == 0 }
    {
        remove(tuple, unsafe { holder(&*flow) });
    }
}

/// The server's socket closed.
#[inline(always)]
pub fn server_closed(tuple: &Tuple, cookie: u64) {
    // SAFETY: the kernel keeps the entry until the program ends.
    if let Some(flow) = FLOWS.get_ptr(tuple)
        && unsafe { (*flow).server_cookie == cookie }
    {
        remove(tuple, unsafe { holder(&*flow) });
    }
}

#[inline(always)]
fn remove(tuple: &Tuple, holder: NetnsCookie) {
    if FLOWS.remove(tuple).is_ok() {
        quota::add(&POD_FLOWS, holder, -1);
    }
}
