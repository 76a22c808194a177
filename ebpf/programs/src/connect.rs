//! `cgroup/connect4`, `cgroup/connect6`: which connections ztunnel carries, decided before the first packet.
//!
//! A connection to a pod of this node that ztunnel has said yes to goes there directly. What else is captured
//! is sent to ztunnel's listener on loopback in the pod, and the socket remembers where it wanted to go. What
//! should be captured and cannot be is refused.

use core::mem::offset_of;

use ambit_abi::{
    Address, KernelReason, NetnsCookie, Path, Place, Pod, PortKey, Role, Socket, Tuple, WorkloadNumber,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::context::{address, field, store};
use crate::flows::{self, Choice};
use crate::maps::{DESTINATIONS, PODS, PORTS, count};
use crate::records::{self, Refused};
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
    /// Straight to a pod of this node.
    Direct(Place),
    Refuse(KernelReason),
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
        Verdict::Direct(endpoint) => {
            // SAFETY: as above. The endpoint is of the socket's family, in the last word.
            unsafe {
                store::<{ offset_of!(bpf_sock_addr, user_ip4) }>(addr, endpoint.address.0[3]);
                store::<{ offset_of!(bpf_sock_addr, user_port) }>(addr, endpoint.port.to_be().into());
            }
            ALLOW
        }
        Verdict::Refuse(reason) => refuse(&context, destination, reason),
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
                // A v4-mapped destination counts as IPv4 and stays v4-mapped: its first words are right
                // already.
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
        Verdict::Direct(endpoint) => {
            let [first, second, third, fourth] = endpoint.address.0;
            // SAFETY: as above.
            unsafe {
                store::<IP>(addr, first);
                store::<{ IP + 4 }>(addr, second);
                store::<{ IP + 8 }>(addr, third);
                store::<{ IP + 12 }>(addr, fourth);
                store::<{ offset_of!(bpf_sock_addr, user_port) }>(addr, endpoint.port.to_be().into());
            }
            ALLOW
        }
        Verdict::Refuse(reason) => refuse(&context, destination, reason),
    }
}

#[inline(always)]
fn refuse(context: &SockAddrContext, destination: Address, reason: KernelReason) -> i32 {
    if matches!(reason, KernelReason::PodUnknown) {
        // The daemon's own socket: it will say itself what failed.
        count(reason);
        return REFUSE;
    }
    let netns = netns(context);
    // SAFETY: the entry is not changed in place, and the kernel keeps it until the program ends.
    let source = unsafe { PODS.get(netns) }.map_or(WorkloadNumber::NONE, |pod| pod.number);
    let asked = Place::new(destination, port(context));
    let refused = Refused { reason, path: Path::Tunnel, source, destination: WorkloadNumber::NONE, netns };
    let tuple =
        Tuple { client: Address([0; 4]), server: destination, client_port: 0, server_port: asked.port };
    records::refused(&refused, &tuple, &asked);
    REFUSE
}

#[inline(always)]
fn netns(context: &SockAddrContext) -> NetnsCookie {
    // SAFETY: the helper takes this context.
    NetnsCookie(unsafe { bpf_get_netns_cookie(context.as_ptr()) })
}

/// The port asked for.
#[inline(always)]
fn port(context: &SockAddrContext) -> u16 {
    // In network byte order, in the lower half.
    // SAFETY: a field of this hook's context.
    u16::from_be(unsafe { field!(context.sock_addr, bpf_sock_addr.user_port) } as u16)
}

#[inline(always)]
fn decide(context: &SockAddrContext, destination: Address) -> Verdict {
    let addr: *mut bpf_sock_addr = context.sock_addr;
    // SAFETY: fields of this hook's context.
    let (kind, protocol, sk) = unsafe {
        (field!(addr, bpf_sock_addr.type_), field!(addr, bpf_sock_addr.protocol), (*addr).__bindgen_anon_1.sk)
    };
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return Verdict::Leave;
    }
    let netns = netns(context);
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
    let asked = Place::new(destination, port(context));
    if pod.flags & Pod::EXCLUDES != 0 && is_excluded(netns, asked.port) {
        return Verdict::Leave;
    }
    let choice = flows::choose(pod.number, asked);
    if protocol == IPPROTO_TCP
        && whole.is_none()
        && let Some(endpoint) = direct(sk, netns, pod, asked, choice)
    {
        return Verdict::Direct(endpoint);
    }
    let listener = if destination.v4().is_some() { pod.outbound_v4 } else { pod.outbound_v6 };
    if listener == 0 {
        return Verdict::Refuse(KernelReason::OutboundListenerMissing);
    }
    if sockets::exhausted(netns) {
        return Verdict::Refuse(KernelReason::HandoffsExhausted);
    }
    let chosen = match choice {
        Choice::Endpoint(endpoint) => endpoint,
        Choice::Itself | Choice::Daemon => Place::new(Address([0; 4]), 0),
    };
    let client = Socket { chosen, ..Socket::new(Role::Client, asked.address, asked.port) };
    // `getpeername()` asks the whole, the rest happens to the subflow.
    let kept = whole.is_none_or(|whole| sockets::set(whole, client)) && sockets::set(sk, client);
    if !kept {
        return Verdict::Refuse(KernelReason::KernelMemory);
    }
    Verdict::Capture(listener)
}

/// Whether the pod keeps its connections to this port, as it dials it, out of capture.
#[inline(always)]
fn is_excluded(netns: NetnsCookie, port: u16) -> bool {
    // SAFETY: entries are replaced, not changed in place, and the kernel keeps them until the program ends.
    unsafe { PORTS.get(PortKey::new(netns, port)) }.is_some_and(|rule| rule.excluded != 0)
}

/// Where the connection goes directly, if it may; the socket remembers what it is then.
#[inline(always)]
fn direct(sk: *mut bpf_sock, netns: NetnsCookie, pod: &Pod, asked: Place, choice: Choice) -> Option<Place> {
    let endpoint = match choice {
        Choice::Itself => asked,
        Choice::Endpoint(endpoint) => endpoint,
        Choice::Daemon => return None,
    };
    // The socket can reach only its own family, and a pod reaches itself by other ways.
    if endpoint.address.v4().is_some() != asked.address.v4().is_some() {
        return None;
    }
    let yes = flows::permitted(pod.number, endpoint)?;
    if yes.destination == pod.number || flows::exhausted(netns) {
        return None;
    }
    let client = Socket {
        chosen: endpoint,
        source: pod.number,
        destination: yes.destination,
        generation: yes.generation,
        ..Socket::new(Role::DirectClient, asked.address, asked.port)
    };
    sockets::set(sk, client).then_some(endpoint)
}

/// ztunnel's own socket towards an app: without a hand-off the app would take ztunnel for its client.
#[inline(always)]
fn towards_app(netns: NetnsCookie) -> Verdict {
    if PODS.get_ptr(netns).is_none() {
        return Verdict::Refuse(KernelReason::PodUnknown);
    }
    if sockets::exhausted(netns) {
        return Verdict::Refuse(KernelReason::HandoffsExhausted);
    }
    Verdict::Leave
}
