//! State of the mesh in sockets' own storage.

use core::ffi::c_void;

use ambit_abi::{Accepted, Socket};
use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_mptcp_sock};

use crate::maps::{ACCEPTED, OWN, SOCKETS};

/// Whether the kernel supports Multipath TCP, written when the programs are loaded. Where it does not, the
/// verifier would refuse the helper, but it ignores code that a constant makes unreachable.
#[unsafe(no_mangle)]
static MULTIPATH: Global<u8> = Global::new(0);

#[inline(always)]
fn map() -> *mut c_void {
    (&raw const SOCKETS).cast_mut().cast()
}

/// The socket's state, if it has any.
#[inline(always)]
pub fn get<'a>(sk: *mut bpf_sock) -> Option<&'a mut Socket> {
    // SAFETY: the helper takes a socket pointer from a context and returns its storage or null.
    unsafe { bpf_sk_storage_get(map(), sk.cast(), core::ptr::null_mut(), 0).cast::<Socket>().as_mut() }
}

/// Sets the socket's state; false if the kernel has no memory for it.
#[inline(always)]
pub fn set(sk: *mut bpf_sock, mut socket: Socket) -> bool {
    let initial = (&raw mut socket).cast();
    // SAFETY: as in `get`; the kernel copies the initial value.
    let stored = unsafe { bpf_sk_storage_get(map(), sk.cast(), initial, BPF_SK_STORAGE_GET_F_CREATE.into()) };
    !stored.is_null()
}

/// Removes the socket's state.
#[inline(always)]
pub fn clear(sk: *mut bpf_sock) {
    // SAFETY: as in `get`; that there is nothing is no error.
    unsafe { bpf_sk_storage_delete(map(), sk.cast()) };
}

/// The state of a server's socket, if its connection is tracked.
#[inline(always)]
pub fn accepted<'a>(sk: *mut bpf_sock) -> Option<&'a mut Accepted> {
    let map = (&raw const ACCEPTED).cast_mut().cast();
    // SAFETY: as in `get`.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<Accepted>().as_mut() }
}

/// Makes the state of a server's socket, all zero; none if the kernel has no memory for it.
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

/// The MPTCP socket that the app has, if this is a subflow of it; `connect()` passes the first subflow.
#[inline(always)]
pub fn multipath(sk: *mut bpf_sock) -> Option<*mut bpf_sock> {
    if MULTIPATH.load() == 0 {
        return None;
    }
    // SAFETY: the helper takes a socket pointer from a context and returns a socket or null.
    let parent: *mut bpf_sock = unsafe { bpf_skc_to_mptcp_sock(sk.cast()).cast() };
    (!parent.is_null()).then_some(parent)
}
