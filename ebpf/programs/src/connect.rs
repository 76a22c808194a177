//! `cgroup/connect4`, `cgroup/connect6`: which connections are captured, decided before the first packet.
//!
//! A connection to a pod of this node for which there is a cached verdict goes there directly. Other captured
//! connections are redirected to ztunnel's listener on loopback in the pod, and the socket keeps the original
//! destination. A connection that should be captured and cannot be is refused.

use core::mem::offset_of;

use ambit_abi::{
    Address, Destination, KernelReason, NamespaceTag, NetnsCookie, PartKey, Path, Pod, PortKey, Role, Socket,
    SocketAddress, Tuple, WorkloadNumber,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::context::{address, field, store};
use crate::endpoints::{self, Choice};
#[cfg(feature = "log")]
use crate::log::decision;
use crate::maps::{DESTINATIONS, DESTINATIONS_INCOMPLETE, PARTS, PODS, PORTS, count};
use crate::records::{self, Refused};
use crate::{flows, handoffs, links, sockets, verdicts};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;

const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();

enum Decision {
    #[cfg_attr(not(feature = "log"), expect(dead_code, reason = "the log alone reads it"))]
    Ignore(Ignored),
    /// Redirected to ztunnel's listener on this port.
    Capture(u16),
    /// Sent directly to a pod of this node.
    Direct(SocketAddress),
    Refuse(KernelReason),
}

/// Why a connection is not captured.
enum Ignored {
    /// Not TCP, not from an enrolled pod, or the daemon's own.
    Unrelated,
    LocalAddress,
    OutsideTheMesh,
    PortExcluded,
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    let addr = context.sock_addr;
    // SAFETY: a field of this hook's context.
    let destination = Address::mapped(unsafe { field!(addr, bpf_sock_addr.user_ip4) });
    let decision = decide(&context, destination);
    log(&context, &destination, &decision);
    match decision {
        Decision::Ignore(_) => ALLOW,
        Decision::Capture(port) => {
            // SAFETY: fields of this hook's context that may be written.
            unsafe {
                store::<{ offset_of!(bpf_sock_addr, user_ip4) }>(addr, LOOPBACK_V4);
                store::<{ offset_of!(bpf_sock_addr, user_port) }>(addr, port.to_be().into());
            }
            ALLOW
        }
        Decision::Direct(endpoint) => {
            // SAFETY: as above. The endpoint is of the socket's family, in the last word.
            unsafe {
                store::<{ offset_of!(bpf_sock_addr, user_ip4) }>(addr, endpoint.address.0[3]);
                store::<{ offset_of!(bpf_sock_addr, user_port) }>(addr, endpoint.port.to_be().into());
            }
            ALLOW
        }
        Decision::Refuse(reason) => refuse(&context, destination, reason),
    }
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    const IP: usize = offset_of!(bpf_sock_addr, user_ip6);
    let addr = context.sock_addr;
    // SAFETY: a field of this hook's context.
    let destination = unsafe { address!(addr, bpf_sock_addr.user_ip6) };
    let decision = decide(&context, destination);
    log(&context, &destination, &decision);
    match decision {
        Decision::Ignore(_) => ALLOW,
        Decision::Capture(port) => {
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
        Decision::Direct(endpoint) => {
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
        Decision::Refuse(reason) => refuse(&context, destination, reason),
    }
}

/// Logs a decision, in a stack frame of its own.
#[cfg(feature = "log")]
#[inline(never)]
fn log(context: &SockAddrContext, destination: &Address, decision: &Decision) {
    let (netns, port) = (netns(context), port(context));
    match decision {
        Decision::Ignore(Ignored::Unrelated) => {}
        Decision::Ignore(Ignored::LocalAddress) => {
            decision!((), "connect: not captured: local address", netns, destination, port);
        }
        Decision::Ignore(Ignored::OutsideTheMesh) => {
            decision!((), "connect: not captured: destination outside the mesh", netns, destination, port);
        }
        Decision::Ignore(Ignored::PortExcluded) => {
            decision!((), "connect: not captured: port excluded", netns, destination, port);
        }
        Decision::Capture(_) => {
            decision!((), "connect: captured: no verdict for the direct path", netns, destination, port);
        }
        Decision::Direct(endpoint) => {
            decision!((), "connect: direct: verdict cached", netns, endpoint.address, endpoint.port);
        }
        Decision::Refuse(reason) => {
            decision!((), "connect: refused", netns, destination, port, *reason);
        }
    }
}

/// Does nothing: this build does not log.
#[cfg(not(feature = "log"))]
#[inline(always)]
fn log(_: &SockAddrContext, _: &Address, _: &Decision) {}

#[inline(always)]
fn refuse(context: &SockAddrContext, destination: Address, reason: KernelReason) -> i32 {
    if matches!(reason, KernelReason::PodUnknown) {
        // The daemon's own socket: the daemon reports the failure itself.
        count(reason);
        return REFUSE;
    }
    let netns = netns(context);
    // SAFETY: the entry is not changed in place, and the kernel keeps it until the program ends.
    let source = unsafe { PODS.get(netns) }.map_or(WorkloadNumber::NONE, |pod| pod.number);
    let original = SocketAddress::new(destination, port(context));
    let refused = Refused { reason, path: Path::Tunnel, source, destination: WorkloadNumber::NONE, netns };
    let tuple =
        Tuple { client: Address([0; 4]), server: destination, client_port: 0, server_port: original.port };
    records::refused(&refused, &tuple, &original);
    REFUSE
}

#[inline(always)]
fn netns(context: &SockAddrContext) -> NetnsCookie {
    // SAFETY: the helper takes this context.
    NetnsCookie(unsafe { bpf_get_netns_cookie(context.as_ptr()) })
}

/// The destination's port.
#[inline(always)]
fn port(context: &SockAddrContext) -> u16 {
    // In network byte order, in the lower half.
    // SAFETY: a field of this hook's context.
    u16::from_be(unsafe { field!(context.sock_addr, bpf_sock_addr.user_port) } as u16)
}

/// With logging, a function of its own: with the log's variables in one frame, the stack would exceed 512
/// bytes.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
fn decide(context: &SockAddrContext, destination: Address) -> Decision {
    let addr: *mut bpf_sock_addr = context.sock_addr;
    // SAFETY: fields of this hook's context.
    let (kind, protocol, sk) = unsafe {
        (field!(addr, bpf_sock_addr.type_), field!(addr, bpf_sock_addr.protocol), (*addr).__bindgen_anon_1.sk)
    };
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return Decision::Ignore(Ignored::Unrelated);
    }
    let netns = netns(context);
    if let Some(socket) = sockets::get(sk) {
        match socket.role {
            role if role == Role::Outbound as u32 => return Decision::Ignore(Ignored::Unrelated),
            role if role == Role::Inbound as u32 => return decide_to_app(netns),
            // State of an earlier connection of this socket.
            _ => sockets::clear(sk),
        }
    }
    let parent = sockets::multipath(sk);
    if let Some(parent) = parent {
        sockets::clear(parent);
    }
    // SAFETY: the entry is not changed in place, and the kernel keeps it until the program ends.
    let Some(pod) = (unsafe { PODS.get(netns) }) else { return Decision::Ignore(Ignored::Unrelated) };
    let original = SocketAddress::new(destination, port(context));
    if destination.is_local() {
        return Decision::Ignore(Ignored::LocalAddress);
    }
    if !is_captured(pod, &original) && !captures_all() {
        return Decision::Ignore(Ignored::OutsideTheMesh);
    }
    if pod.flags & Pod::EXCLUDES != 0 && is_excluded(netns, original.port) {
        return Decision::Ignore(Ignored::PortExcluded);
    }
    let choice = endpoints::choose(pod.number, original);
    if protocol == IPPROTO_TCP
        && parent.is_none()
        && let Some(endpoint) = direct(sk, netns, pod, original, choice)
    {
        return Decision::Direct(endpoint);
    }
    let listener = if destination.v4().is_some() { pod.outbound_v4 } else { pod.outbound_v6 };
    if listener == 0 {
        return Decision::Refuse(KernelReason::OutboundListenerMissing);
    }
    if handoffs::exhausted(netns) {
        return Decision::Refuse(KernelReason::HandoffsExhausted);
    }
    if !unbind(context, sk) {
        return Decision::Refuse(KernelReason::DeviceBound);
    }
    let endpoint = match choice {
        Choice::Endpoint(endpoint) => endpoint,
        Choice::Itself | Choice::Daemon => SocketAddress::UNSET,
    };
    let client = Socket { endpoint, ..Socket::new(Role::Client, original.address, original.port) };
    // `getpeername()` reads the state of the MPTCP socket, all other hooks that of the subflow.
    let kept = parent.is_none_or(|parent| sockets::set(parent, client)) && sockets::set(sk, client);
    if !kept {
        return Decision::Refuse(KernelReason::KernelMemory);
    }
    Decision::Capture(listener)
}

/// Whether the pod's connections to this destination are captured. A function of its own, so that its keys do
/// not lie in the caller's stack frame.
#[inline(never)]
fn is_captured(pod: &Pod, destination: &SocketAddress) -> bool {
    // SAFETY: entries are replaced, not changed in place, and the kernel keeps them until the program ends.
    match unsafe { DESTINATIONS.get(destination.address) } {
        None => return false,
        Some(captured) if captured.0 & Destination::ALL.0 != 0 => return true,
        Some(_) => {}
    }
    let mut key =
        PartKey { address: destination.address, port: destination.port, namespace: NamespaceTag::ANY };
    if PARTS.get_ptr(key).is_some() {
        return true;
    }
    key.namespace = pod.namespace;
    if PARTS.get_ptr(key).is_some() {
        return true;
    }
    key.port = 0;
    PARTS.get_ptr(key).is_some()
}

/// Whether destinations are captured that are not listed: for want of room, not all are.
#[inline(always)]
fn captures_all() -> bool {
    // SAFETY: the slot is always there; it changes in place, in one write.
    DESTINATIONS_INCOMPLETE.get_ptr(0).is_some_and(|incomplete| unsafe { incomplete.read_volatile() } != 0)
}

/// Takes a socket off the device that it is bound to, over which loopback cannot be reached: its packets
/// would leave the pod. False: the kernel lets only an application with CAP_NET_RAW change that.
#[inline(always)]
fn unbind(context: &SockAddrContext, sk: *mut bpf_sock) -> bool {
    // SAFETY: a field of a socket from this hook's context.
    if unsafe { field!(sk, bpf_sock.bound_dev_if) } == 0 {
        return true;
    }
    let mut none = 0_u8;
    let none = (&raw mut none).cast();
    // SAFETY: the helper takes this context, and reads one byte: an empty name is no device.
    unsafe { bpf_setsockopt(context.as_ptr(), SOL_SOCKET, SO_BINDTODEVICE, none, 1) == 0 }
}

/// Whether the pod excludes its outbound connections to this port from capture.
#[inline(always)]
fn is_excluded(netns: NetnsCookie, port: u16) -> bool {
    // SAFETY: entries are replaced, not changed in place, and the kernel keeps them until the program ends.
    unsafe { PORTS.get(PortKey::new(netns, port)) }.is_some_and(|rule| rule.excluded != 0)
}

/// The endpoint of a direct connection, if there may be one. The socket then has the state of one.
#[inline(always)]
fn direct(
    sk: *mut bpf_sock,
    netns: NetnsCookie,
    pod: &Pod,
    original: SocketAddress,
    choice: Choice,
) -> Option<SocketAddress> {
    let endpoint = match choice {
        Choice::Itself => original,
        Choice::Endpoint(endpoint) => endpoint,
        Choice::Daemon => return None,
    };
    // The socket can reach only its own family.
    if endpoint.address.v4().is_some() != original.address.v4().is_some() {
        return None;
    }
    let verdict = verdicts::cached(pod.number, endpoint)?;
    // A pod's connections to itself do not leave its namespace.
    if verdict.destination == pod.number || flows::exhausted(netns) {
        return None;
    }
    let (link, _) = links::between(pod.number, verdict.destination)?;
    if links::is_shared(&link) && links::exhausted(netns) {
        return None;
    }
    let client = Socket {
        endpoint,
        source: pod.number,
        destination: verdict.destination,
        generation: verdict.generation,
        ..Socket::new(Role::DirectClient, original.address, original.port)
    };
    sockets::set(sk, client).then_some(endpoint)
}

/// ztunnel's own socket to an app: without a hand-off the app would take ztunnel for its client.
#[inline(always)]
fn decide_to_app(netns: NetnsCookie) -> Decision {
    if PODS.get_ptr(netns).is_none() {
        return Decision::Refuse(KernelReason::PodUnknown);
    }
    if handoffs::exhausted(netns) {
        return Decision::Refuse(KernelReason::HandoffsExhausted);
    }
    Decision::Ignore(Ignored::Unrelated)
}
