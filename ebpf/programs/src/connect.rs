//! `cgroup/connect4`, `cgroup/connect6`: which connections ztunnel carries, decided before the first packet.
//!
//! What is captured is sent to ztunnel's listener on loopback in the pod, and the socket remembers where it
//! wanted to go. What should be captured and cannot be is refused.

use core::mem::offset_of;

use ambit_abi::{Address, NetnsCookie, Reason, Role, Socket};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::context::{address, field, store};
use crate::maps::{DESTINATIONS, PODS, count};
use crate::sockets;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();

enum Verdict {
    /// Not the mesh's.
    Leave,
    /// To ztunnel's listener on this port.
    Capture(u16),
    Refuse(Reason),
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    let addr = context.sock_addr;
    // SAFETY: a field of this hook's context.
    let destination = Address::mapped(unsafe { field!(addr, bpf_sock_addr.user_ip4) });
    match decide(&context, destination) {
        Verdict::Leave => ALLOW,
        Verdict::Capture(port) => {
            // SAFETY: fields of this hook's context that may be written.
            unsafe {
                store::<{ offset_of!(bpf_sock_addr, user_ip4) }>(addr, LOOPBACK_V4);
                store::<{ offset_of!(bpf_sock_addr, user_port) }>(addr, port.to_be().into());
            }
            ALLOW
        }
        Verdict::Refuse(reason) => refuse(reason),
    }
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    const IP: usize = offset_of!(bpf_sock_addr, user_ip6);
    let addr = context.sock_addr;
    // SAFETY: a field of this hook's context.
    let destination = unsafe { address!(addr, bpf_sock_addr.user_ip6) };
    match decide(&context, destination) {
        Verdict::Leave => ALLOW,
        Verdict::Capture(port) => {
            // SAFETY: fields of this hook's context that may be written.
            unsafe {
                // A v4-mapped destination counts as IPv4 and stays v4-mapped: its first words are right already.
                if destination.v4().is_some() {
                    store::<{ IP + 12 }>(addr, LOOPBACK_V4);
                } else {
                    store::<IP>(addr, 0);
                    store::<{ IP + 4 }>(addr, 0);
                    store::<{ IP + 8 }>(addr, 0);
                    store::<{ IP + 12 }>(addr, 1_u32.to_be());
                }
                store::<{ offset_of!(bpf_sock_addr, user_port) }>(addr, port.to_be().into());
            }
            ALLOW
        }
        Verdict::Refuse(reason) => refuse(reason),
    }
}

#[inline(always)]
fn refuse(reason: Reason) -> i32 {
    count(reason);
    REFUSE
}

#[inline(always)]
fn decide(context: &SockAddrContext, destination: Address) -> Verdict {
    let addr: *mut bpf_sock_addr = context.sock_addr;
    // SAFETY: fields of this hook's context.
    let (kind, protocol, port, sk) = unsafe {
        (
            field!(addr, bpf_sock_addr.type_),
            field!(addr, bpf_sock_addr.protocol),
            field!(addr, bpf_sock_addr.user_port),
            (*addr).__bindgen_anon_1.sk,
        )
    };
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return Verdict::Leave;
    }
    // SAFETY: the helper takes this context.
    let netns = NetnsCookie(unsafe { bpf_get_netns_cookie(context.as_ptr()) });
    if let Some(socket) = sockets::get(sk) {
        match socket.role {
            role if role == Role::Outbound as u32 => return Verdict::Leave,
            role if role == Role::Inbound as u32 => return towards_app(netns),
            // What an earlier connection of this socket left.
            _ => sockets::clear(sk),
        }
    }
    let whole = sockets::multipath(sk);
    if let Some(whole) = whole {
        sockets::clear(whole);
    }
    // SAFETY: the entry is not changed in place, and the kernel keeps it until the program ends.
    let Some(pod) = (unsafe { PODS.get(netns) }) else { return Verdict::Leave };
    if destination.is_local() {
        return Verdict::Leave;
    }
    if DESTINATIONS.get_ptr(destination).is_none() {
        return Verdict::Leave;
    }
    let listener = if destination.v4().is_some() { pod.outbound_v4 } else { pod.outbound_v6 };
    if listener == 0 {
        return Verdict::Refuse(Reason::OutboundListenerMissing);
    }
    if sockets::exhausted(netns) {
        return Verdict::Refuse(Reason::HandoffsExhausted);
    }
    // The port is in network byte order, in the lower half.
    let asked = Socket::new(Role::Client, destination, u16::from_be(port as u16));
    // `getpeername()` asks the whole, the rest happens to the subflow.
    let kept = whole.is_none_or(|whole| sockets::set(whole, asked)) && sockets::set(sk, asked);
    if !kept {
        return Verdict::Refuse(Reason::KernelMemory);
    }
    Verdict::Capture(listener)
}

/// ztunnel's own socket towards an app: without a hand-off the app would take ztunnel for its client.
#[inline(always)]
fn towards_app(netns: NetnsCookie) -> Verdict {
    if PODS.get_ptr(netns).is_none() {
        return Verdict::Refuse(Reason::PodUnknown);
    }
    if sockets::exhausted(netns) {
        return Verdict::Refuse(Reason::HandoffsExhausted);
    }
    Verdict::Leave
}
