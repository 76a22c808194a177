//! Verdicts, and the list of connections that no daemon carries.

use ambit_abi::{
    Flow, KernelReason, NetnsCookie, Place, Service, SlotKey, Towards, Tuple, WorkloadNumber, Yes, limits,
};
use aya_ebpf::bindings::{BPF_ANY, BPF_EXIST, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;

use crate::maps::{ENDPOINTS, FLOWS, GENERATIONS, LEASE, POD_FLOWS, SERVICES, STICKY, VERDICTS, count};
use crate::records::now;
use crate::sockets::{add, at_limit};

/// Where a connection to a place goes.
#[derive(Clone, Copy)]
pub enum Choice {
    /// It is no service with a choice here: to the place itself.
    Itself,
    /// To this endpoint.
    Endpoint(Place),
    /// The daemon chooses.
    Daemon,
}

/// Chooses an endpoint.
#[inline(always)]
pub fn choose(source: WorkloadNumber, asked: Place) -> Choice {
    // SAFETY: here and below: entries are replaced, not changed in place, and the kernel keeps them until the
    // program ends.
    let Some(service) = (unsafe { SERVICES.get(asked) }) else { return Choice::Itself };
    if service.flags & Service::AFFINITY != 0 {
        // SAFETY: as above.
        return match unsafe { STICKY.get(Towards::new(source, asked)) } {
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

/// The yes for this connection, if there is one and it holds.
#[inline(always)]
pub fn permitted(source: WorkloadNumber, endpoint: Place) -> Option<Yes> {
    // SAFETY: as in `choose`.
    let yes = *unsafe { VERDICTS.get(Towards::new(source, endpoint)) }?;
    // SAFETY: the slot is always there; it changes in place, in one write.
    let lease = unsafe { LEASE.get_ptr(0)?.read_volatile() };
    (lease > now() && is_current(yes.destination, yes.generation)).then_some(yes)
}

/// Whether a destination's policy is the one that this generation stands for.
#[inline(always)]
pub fn is_current(destination: WorkloadNumber, generation: u64) -> bool {
    // SAFETY: the kernel keeps the entry until the program ends.
    GENERATIONS.get_ptr(destination).is_some_and(|it| unsafe { it.read_volatile() } == generation)
}

/// Whether a pod has as many connections listed as it may have.
#[inline(always)]
pub fn exhausted(netns: NetnsCookie) -> bool {
    // SAFETY: as above.
    POD_FLOWS
        .get_ptr(netns)
        .is_none_or(|counter| at_limit(unsafe { counter.read_volatile() }, limits::POD_FLOWS))
}

/// Whose count an entry is in: who entered it.
#[inline(always)]
fn holder(flow: &Flow) -> NetnsCookie {
    if flow.client_netns == NetnsCookie(0) { flow.server_netns } else { flow.client_netns }
}

#[inline(always)]
fn counted(netns: NetnsCookie, change: i64) {
    if let Some(counter) = POD_FLOWS.get_ptr_mut(netns) {
        add(counter, change);
    }
}

/// Lists a connection, before its SYN leaves. Of another's that is established nothing may change: no new
/// connection with its addresses and ports can come about beside it.
#[inline(always)]
pub fn announce(tuple: &Tuple, flow: &Flow) -> bool {
    if FLOWS.insert(tuple, flow, BPF_NOEXIST.into()).is_ok() {
        counted(holder(flow), 1);
        return true;
    }
    // SAFETY: as above.
    let taken = FLOWS
        .get_ptr(tuple)
        .is_none_or(|old| unsafe { (*old).server_cookie != 0 && (*old).source != flow.source });
    !taken && replace(tuple, flow)
}

/// The server's end takes a listed connection over. A new entry, not a change in the old one, whose memory
/// may be another connection's already; and if the client has just taken it off, it is listed again.
#[inline(always)]
pub fn take_over(tuple: &Tuple, flow: &Flow) {
    if FLOWS.insert(tuple, flow, BPF_EXIST.into()).is_err() {
        list(tuple, flow);
    }
}

/// Lists a connection that is established: what is listed with its addresses and ports has been left behind.
#[inline(always)]
pub fn list(tuple: &Tuple, flow: &Flow) {
    if exhausted(holder(flow)) {
        return count(KernelReason::FlowsExhausted);
    }
    if FLOWS.insert(tuple, flow, BPF_NOEXIST.into()).is_ok() {
        counted(holder(flow), 1);
    } else if !replace(tuple, flow) {
        count(KernelReason::FlowsExhausted);
    }
}

#[inline(always)]
fn replace(tuple: &Tuple, flow: &Flow) -> bool {
    // SAFETY: as above.
    let Some(old) = FLOWS.get_ptr(tuple).map(|old| holder(unsafe { &*old })) else { return false };
    if FLOWS.insert(tuple, flow, BPF_ANY.into()).is_err() {
        return false;
    }
    counted(old, -1);
    counted(holder(flow), 1);
    true
}

/// The client's socket closed. From when the connection is established it is listed until the server's
/// closes: what a client says of its own end must not hide a connection from the next change of policy.
#[inline(always)]
pub fn client_closed(tuple: &Tuple, cookie: u64) {
    // SAFETY: as above.
    if let Some(flow) = FLOWS.get_ptr(tuple)
        && unsafe { (*flow).client_cookie == cookie && (*flow).server_cookie == 0 }
    {
        remove(tuple, unsafe { holder(&*flow) });
    }
}

/// The server's socket closed.
#[inline(always)]
pub fn server_closed(tuple: &Tuple, cookie: u64) {
    // SAFETY: as above.
    if let Some(flow) = FLOWS.get_ptr(tuple)
        && unsafe { (*flow).server_cookie == cookie }
    {
        remove(tuple, unsafe { holder(&*flow) });
    }
}

#[inline(always)]
fn remove(tuple: &Tuple, holder: NetnsCookie) {
    if FLOWS.remove(tuple).is_ok() {
        counted(holder, -1);
    }
}
