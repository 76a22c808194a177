//! Fields and helpers of a `sockops` context.

use ambit_abi::{Address, NetnsCookie, Tuple};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_setsockopt};
use aya_ebpf::programs::SockOpsContext;

use crate::context::{address, field};

const AF_INET: u32 = 2;

/// Requests further callbacks. The helper replaces the flags, so those of other programs are passed again.
#[inline(always)]
pub fn add_flags(context: &SockOpsContext, flags: u32) -> bool {
    context.set_cb_flags((context.cb_flags() | flags) as i32).is_ok()
}

/// Leaves a connecting socket without a way out of its namespace: from now on it sends to the loopback
/// interface only, and `connect()` fails in time.
#[inline(always)]
pub fn strand(context: &SockOpsContext) {
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTOIFINDEX: i32 = 62;
    let mut loopback = 1_i32;
    // SAFETY: the helper takes this context, and reads the option's four bytes.
    unsafe {
        bpf_setsockopt(
            context.as_ptr(),
            SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw mut loopback).cast(),
            size_of::<i32>() as i32,
        );
    }
}

#[inline(always)]
pub fn netns(context: &SockOpsContext) -> NetnsCookie {
    // SAFETY: the helper takes this context.
    NetnsCookie(unsafe { bpf_get_netns_cookie(context.as_ptr()) })
}

#[inline(always)]
pub fn socket_cookie(context: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes this context.
    unsafe { bpf_get_socket_cookie(context.as_ptr()) }
}

/// The 4-tuple of a connecting socket.
#[inline(always)]
pub fn outgoing(context: &SockOpsContext) -> Tuple {
    Tuple {
        client: local(context),
        server: remote(context),
        client_port: local_port(context),
        server_port: remote_port(context),
    }
}

/// The 4-tuple of an accepted socket.
#[inline(always)]
pub fn incoming(context: &SockOpsContext) -> Tuple {
    Tuple {
        client: remote(context),
        server: local(context),
        client_port: remote_port(context),
        server_port: local_port(context),
    }
}

#[inline(always)]
fn local_port(context: &SockOpsContext) -> u16 {
    // In host byte order.
    // SAFETY: a field of this hook's context.
    unsafe { field!(context.ops, bpf_sock_ops.local_port) as u16 }
}

#[inline(always)]
fn remote_port(context: &SockOpsContext) -> u16 {
    // In network byte order, as a 32-bit number.
    // SAFETY: a field of this hook's context.
    u32::from_be(unsafe { field!(context.ops, bpf_sock_ops.remote_port) }) as u16
}

#[inline(always)]
fn local(context: &SockOpsContext) -> Address {
    // SAFETY: fields of this hook's context.
    unsafe {
        if field!(context.ops, bpf_sock_ops.family) == AF_INET {
            return Address::mapped(field!(context.ops, bpf_sock_ops.local_ip4));
        }
        address!(context.ops, bpf_sock_ops.local_ip6)
    }
}

#[inline(always)]
fn remote(context: &SockOpsContext) -> Address {
    // SAFETY: fields of this hook's context.
    unsafe {
        if field!(context.ops, bpf_sock_ops.family) == AF_INET {
            return Address::mapped(field!(context.ops, bpf_sock_ops.remote_ip4));
        }
        address!(context.ops, bpf_sock_ops.remote_ip6)
    }
}
