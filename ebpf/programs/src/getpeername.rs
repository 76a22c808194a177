//! `cgroup/getpeername4`, `cgroup/getpeername6`: an app sees whom it talks to, not ztunnel. They run in
//! `getpeername()` and in `accept()`.

use core::mem::offset_of;

use ambit_abi::{Role, Socket};
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::context::store;
use crate::sockets;

/// The kernel accepts no other answer from these hooks.
const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    // An IPv4 socket cannot show an IPv6 peer.
    if let Some(socket) = shown(&context)
        && let Some(word) = socket.address.v4()
    {
        // SAFETY: fields of this hook's context that may be written.
        unsafe {
            store::<{ offset_of!(bpf_sock_addr, user_ip4) }>(context.sock_addr, word);
            store::<{ offset_of!(bpf_sock_addr, user_port) }>(context.sock_addr, socket.port.to_be().into());
        }
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    const IP: usize = offset_of!(bpf_sock_addr, user_ip6);
    if let Some(socket) = shown(&context) {
        let [first, second, third, fourth] = socket.address.0;
        // SAFETY: as in `getpeername4`.
        unsafe {
            store::<IP>(context.sock_addr, first);
            store::<{ IP + 4 }>(context.sock_addr, second);
            store::<{ IP + 8 }>(context.sock_addr, third);
            store::<{ IP + 12 }>(context.sock_addr, fourth);
            store::<{ offset_of!(bpf_sock_addr, user_port) }>(context.sock_addr, socket.port.to_be().into());
        }
    }
    ALLOW
}

/// The socket, if an app holds it. ztunnel's own sockets show what they are connected to.
#[inline(always)]
fn shown<'a>(context: &SockAddrContext) -> Option<&'a Socket> {
    // SAFETY: a field of this hook's context.
    let socket = sockets::get(unsafe { (*context.sock_addr).__bindgen_anon_1.sk })?;
    let held_by_app = [Role::Client, Role::Server, Role::DirectClient].map(|role| role as u32);
    held_by_app.contains(&socket.role).then_some(socket)
}
