//! What the mesh remembers in sockets (`SOCKETS`), and the hand-offs between a connection's two ends.

use core::arch::asm;
use core::ffi::c_void;

use ambit_abi::{Accepted, FlowKey, Handoff, NetnsCookie, Socket, limits};
use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_mptcp_sock};

use crate::maps::{ACCEPTED, HANDOFFS, OWN, POD_HANDOFFS, SOCKETS};

/// Whether the kernel knows Multipath TCP, written when the programs are loaded: where it does not, the
/// helper is refused, but code that a constant makes unreachable is not looked at.
#[unsafe(no_mangle)]
static MULTIPATH: Global<u8> = Global::new(0);

#[inline(always)]
fn map() -> *mut c_void {
    (&raw const SOCKETS).cast_mut().cast()
}

/// What the mesh remembers in the socket, if anything.
#[inline(always)]
pub fn get<'a>(sk: *mut bpf_sock) -> Option<&'a mut Socket> {
    // SAFETY: the helper takes a socket pointer from a context and returns its storage or null.
    unsafe { bpf_sk_storage_get(map(), sk.cast(), core::ptr::null_mut(), 0).cast::<Socket>().as_mut() }
}

/// Remembers; false if the kernel has no memory for it.
#[inline(always)]
pub fn set(sk: *mut bpf_sock, mut socket: Socket) -> bool {
    let initial = (&raw mut socket).cast();
    // SAFETY: as in `get`; the kernel copies the initial value.
    let stored = unsafe { bpf_sk_storage_get(map(), sk.cast(), initial, BPF_SK_STORAGE_GET_F_CREATE.into()) };
    !stored.is_null()
}

/// Forgets.
#[inline(always)]
pub fn clear(sk: *mut bpf_sock) {
    // SAFETY: as in `get`; that there is nothing is no error.
    unsafe { bpf_sk_storage_delete(map(), sk.cast()) };
}

/// What a server's socket remembers of its connection, if the mesh looks at it.
#[inline(always)]
pub fn accepted<'a>(sk: *mut bpf_sock) -> Option<&'a mut Accepted> {
    let map = (&raw const ACCEPTED).cast_mut().cast();
    // SAFETY: as in `get`.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<Accepted>().as_mut() }
}

/// Makes room in a server's socket, all zero; none if the kernel has no memory for it.
#[inline(always)]
pub fn accept<'a>(sk: *mut bpf_sock) -> Option<&'a mut Accepted> {
    let map = (&raw const ACCEPTED).cast_mut().cast();
    let create = BPF_SK_STORAGE_GET_F_CREATE.into();
    // SAFETY: as in `get`.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), create).cast::<Accepted>().as_mut() }
}

/// Whether the socket was accepted by one of ztunnel's own listeners.
#[inline(always)]
pub fn is_own(sk: *mut bpf_sock) -> bool {
    let map = (&raw const OWN).cast_mut().cast();
    // SAFETY: as in `get`.
    !unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0) }.is_null()
}

/// The socket that the app holds, if this is a subflow of it; `connect()` sees the first subflow.
#[inline(always)]
pub fn multipath(sk: *mut bpf_sock) -> Option<*mut bpf_sock> {
    if MULTIPATH.load() == 0 {
        return None;
    }
    // SAFETY: the helper takes a socket pointer from a context and returns a socket or null.
    let whole: *mut bpf_sock = unsafe { bpf_skc_to_mptcp_sock(sk.cast()).cast() };
    (!whole.is_null()).then_some(whole)
}

/// Whether a pod has as many hand-offs as it may have; one that is not enrolled may have none.
#[inline(always)]
pub fn exhausted(netns: NetnsCookie) -> bool {
    // SAFETY: the kernel keeps the entry until the program ends.
    POD_HANDOFFS
        .get_ptr(netns)
        .is_none_or(|counter| at_limit(unsafe { counter.read_volatile() }, limits::POD_HANDOFFS))
}

/// Whether a pod's count has reached its limit. A pod that was released and enrolled again counts from zero
/// while entries of its earlier enrolment are still to be taken away, so a count may be below zero for a
/// while.
#[inline(always)]
pub fn at_limit(count: u64, limit: u64) -> bool {
    count.cast_signed() >= limit.cast_signed()
}

/// Leaves a hand-off; false if the map would not take it.
#[inline(always)]
pub fn leave(key: &FlowKey, handoff: &Handoff) -> bool {
    if HANDOFFS.insert(key, handoff, BPF_NOEXIST.into()).is_ok() {
        counted(key.netns, 1);
        return true;
    }
    // Two live connections cannot have one key: what is there has been left behind, and stays counted.
    HANDOFFS.insert(key, handoff, BPF_ANY.into()).is_ok()
}

/// Takes a hand-off away, whoever does so first.
#[inline(always)]
pub fn take(key: &FlowKey) {
    if HANDOFFS.remove(key).is_ok() {
        counted(key.netns, -1);
    }
}

#[inline(always)]
fn counted(netns: NetnsCookie, change: i64) {
    if let Some(counter) = POD_HANDOFFS.get_ptr_mut(netns) {
        add(counter, change);
    }
}

/// Changes a count in a map. `core`'s atomics know no addition on this target; the instruction itself is as
/// old as the machine.
#[inline(always)]
pub fn add(counter: *mut u64, change: i64) {
    // SAFETY: the value is an aligned u64, which the kernel keeps until the program ends.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {change}", counter = in(reg) counter, change = in(reg) change)
    };
}
