//! The links under direct connections: between which pods there may be any, and what the programs on shared
//! links are told of each.

use ambit_abi::{FlowEntry, LinkEntry, LinkFlow, LinkKind, NetnsCookie, Tuple, WorkloadNumber, limits};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};

use crate::clock::now;
use crate::maps::{LINK_FLOWS, LINKS, POD_LINK_FLOWS};
use crate::quota;

/// The links of two pods, if direct connections may take them: both are of one kind.
#[inline(always)]
pub fn between(source: WorkloadNumber, destination: WorkloadNumber) -> Option<(LinkEntry, LinkEntry)> {
    // SAFETY: entries are replaced, not changed in place, and the kernel keeps them until the program ends.
    let links = unsafe { (*LINKS.get(source)?, *LINKS.get(destination)?) };
    (links.0.kind != 0 && links.0.kind == links.1.kind).then_some(links)
}

/// Whether direct connections on such a link need the link's programs.
#[inline(always)]
pub fn is_shared(link: &LinkEntry) -> bool {
    link.kind == LinkKind::Shared as u8
}

/// Whether a pod has its share of direct connections between shared links.
#[inline(always)]
pub fn exhausted(netns: NetnsCookie) -> bool {
    quota::is_exhausted(&POD_LINK_FLOWS, netns, limits::SHARED_LINK_FLOWS)
}

/// Tells the programs on the links of a connection whose SYN is about to be sent. What they had of an earlier
/// one with the same 4-tuple is void: two sockets of one namespace cannot share it.
#[inline(always)]
pub fn track(tuple: &Tuple, flow: &FlowEntry, client: &LinkEntry, server: &LinkEntry) -> bool {
    let entry = LinkFlow {
        client_cookie: flow.client_cookie,
        client_netns: flow.client_netns,
        client_interface: client.interface,
        server_interface: server.interface,
        ..LinkFlow::default()
    };
    if LINK_FLOWS.insert(tuple, entry, BPF_NOEXIST.into()).is_ok() {
        quota::add(&POD_LINK_FLOWS, flow.client_netns, 1);
        return true;
    }
    // SAFETY: the kernel keeps the entry until the program ends.
    let Some(holder) = LINK_FLOWS.get_ptr(tuple).map(|old| unsafe { (*old).client_netns }) else {
        return false;
    };
    if LINK_FLOWS.insert(tuple, entry, BPF_ANY.into()).is_err() {
        return false;
    }
    quota::add(&POD_LINK_FLOWS, holder, -1);
    quota::add(&POD_LINK_FLOWS, flow.client_netns, 1);
    true
}

/// Whether the SYN of a flow left the client's own link and came over the server's.
#[inline(always)]
pub fn is_delivered(tuple: &Tuple, flow: &FlowEntry) -> bool {
    // SAFETY: the kernel keeps the entry until the program ends.
    entry(tuple, flow.client_cookie).is_some_and(|entry| unsafe { event(&raw const (*entry).delivered) })
}

/// The server's socket is known, and will tell when it closes.
#[inline(always)]
pub fn accepted(tuple: &Tuple, client_cookie: u64) {
    if let Some(entry) = entry(tuple, client_cookie) {
        // SAFETY: as above.
        unsafe { set(&raw mut (*entry).accepted) };
    }
}

/// The server's socket is known, whose client has closed already; that one's cookie, if the links have the
/// connection.
#[inline(always)]
pub fn adopt(tuple: &Tuple) -> Option<u64> {
    let entry = LINK_FLOWS.get_ptr_mut(tuple)?;
    // SAFETY: the kernel keeps the entry until the program ends; the cookie does not change.
    unsafe {
        set(&raw mut (*entry).accepted);
        Some((*entry).client_cookie)
    }
}

/// The client's socket closed. The daemon removes the entry a while after both ends have closed: their last
/// packets may still wait in a queue.
#[inline(always)]
pub fn client_closed(tuple: &Tuple, client_cookie: u64) {
    if let Some(entry) = entry(tuple, client_cookie) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*entry).closed).write_volatile(now());
            set(&raw mut (*entry).client_closed);
        }
    }
}

/// The server's socket closed.
#[inline(always)]
pub fn server_closed(tuple: &Tuple, client_cookie: u64) {
    if let Some(entry) = entry(tuple, client_cookie) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*entry).closed).write_volatile(now());
            set(&raw mut (*entry).server_closed);
        }
    }
}

/// The entry of this connection, not of another one with the same 4-tuple.
#[inline(always)]
fn entry(tuple: &Tuple, client_cookie: u64) -> Option<*mut LinkFlow> {
    // SAFETY: the kernel keeps the entry until the program ends; the cookie does not change.
    LINK_FLOWS.get_ptr_mut(tuple).filter(|entry| unsafe { (**entry).client_cookie } == client_cookie)
}

/// Whether an event has happened.
///
/// # Safety
/// The pointer must be to a byte that the kernel keeps until the program ends.
#[inline(always)]
pub unsafe fn event(byte: *const u8) -> bool {
    // SAFETY: the caller's obligation.
    unsafe { byte.read_volatile() != 0 }
}

/// Notes an event.
///
/// # Safety
/// As [`event`].
#[inline(always)]
pub unsafe fn set(byte: *mut u8) {
    // SAFETY: the caller's obligation.
    unsafe { byte.write_volatile(1) };
}
