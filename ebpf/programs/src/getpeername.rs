//! `cgroup/getpeername4`, `cgroup/getpeername6`: an app sees its real peer, not ztunnel. The programs run in
//! `getpeername()` and in `accept()`.

use core::mem::offset_of;

use ambit_abi::{Role, Socket};
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::context::store;
use crate::sockets;

/// The only return value that the kernel accepts from these hooks.
const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    // An IPv4 socket cannot have an IPv6 peer.
    if let Some(socket) = app_socket(&context)
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
    if let Some(socket) = app_socket(&context) {
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

/// The state of an app's socket. ztunnel's own sockets report the address that they are connected to.
#[inline(always)]
fn app_socket<'a>(context: &SockAddrContext) -> Option<&'a Socket> {
    // SAFETY: a field of this hook's context.
    let socket = sockets::get(unsafe { (*context.sock_addr).__bindgen_anon_1.sk })?;
    let app_roles = [Role::Client, Role::Server, Role::DirectClient].map(|role| role as u32);
    app_roles.contains(&socket.role).then_some(socket)
}
