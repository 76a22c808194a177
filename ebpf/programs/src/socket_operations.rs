//! `sockops`: carries what the connecting end of a connection inside a pod knows over to the accepting end.
//!
//! When a captured connection's SYN leaves, its source port is known for the first time: there the original
//! destination becomes a hand-off, which ztunnel's accepted socket takes. A connection that ztunnel makes to
//! an app hands the real client's address to the app's accepted socket the same way. Direct connections are
//! listed at that moment; their servers' ends, and those of native connections, are in `established`.

use ambit_abi::{
    Address, Flow, FlowKey, Handoff, KernelReason, NetnsCookie, Path, Place, Role, Socket, Tuple,
};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_PARSE_HDR_OPT_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, bpf_sock,
    bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;

use crate::context::{address, field};
use crate::maps::{HANDOFFS, PODS, count};
use crate::records::now;
use crate::{established, flows, sockets};

const AF_INET: u32 = 2;

#[sock_ops]
pub fn socket_operations(context: SockOpsContext) -> u32 {
    // SAFETY: a field of this hook's context; null where the kernel has no full socket.
    let sk = unsafe { (*context.ops).__bindgen_anon_2.sk };
    if !sk.is_null() {
        match context.op() {
            BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&context, sk),
            BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&context, sk),
            BPF_SOCK_OPS_STATE_CB => changed(&context, sk),
            BPF_SOCK_OPS_PARSE_HDR_OPT_CB => {
                if let Some(accepted) = sockets::accepted(sk) {
                    established::arrives(&context, accepted);
                }
            }
            BPF_SOCK_OPS_HDR_OPT_LEN_CB => {
                if let Some(accepted) = sockets::accepted(sk) {
                    established::leaves(&context, accepted);
                }
            }
            _ => {}
        }
    }
    1
}

/// The SYN is about to leave.
#[inline(always)]
fn connecting(context: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(socket) = sockets::get(sk) else { return };
    let role = match socket.role {
        role if role == Role::Client as u32 => Role::Captured,
        role if role == Role::Inbound as u32 => Role::Server,
        role if role == Role::DirectClient as u32 => return announce(context, socket),
        _ => return,
    };
    let flow = FlowKey {
        netns: netns(context),
        client: local(context),
        client_port: local_port(context),
        server_port: remote_port(context),
        reserved: 0,
    };
    let handoff = Handoff {
        owner: socket_cookie(context),
        address: socket.address,
        port: socket.port,
        reserved: 0,
        role: role as u32,
        chosen: socket.chosen,
        unused: 0,
    };
    if !sockets::leave(&flow, &handoff) {
        count(KernelReason::HandoffLost);
        return;
    }
    socket.flow = flow;
    if !add_flags(context, BPF_SOCK_OPS_STATE_CB_FLAG) {
        // Nobody would take the hand-off away when the socket closes early.
        sockets::take(&flow);
        count(KernelReason::HandoffLost);
    }
}

/// A direct connection's SYN is about to leave: from here on it is listed, and only what is listed may pass.
#[inline(always)]
fn announce(context: &SockOpsContext, socket: &Socket) {
    let tuple = outgoing(context);
    // Another program of the hook may have sent it elsewhere since: that was not decided, and its destination
    // decides. (With nothing to compare it was decided by an earlier build's program.)
    let goes = Place::new(tuple.server, tuple.server_port);
    if !socket.chosen.is_none() && socket.chosen != goes {
        return count(KernelReason::FlowMisdirected);
    }
    let flow = Flow {
        source: socket.source,
        destination: socket.destination,
        generation: socket.generation,
        client_cookie: socket_cookie(context),
        server_cookie: 0,
        client_netns: netns(context),
        server_netns: NetnsCookie(0),
        opened: now(),
        asked: Place::new(socket.address, socket.port),
        path: Path::Direct as u8,
        flags: 0,
        reserved: [0; 2],
    };
    if !flows::announce(&tuple, &flow) {
        count(KernelReason::FlowTaken);
    } else if !add_flags(context, BPF_SOCK_OPS_STATE_CB_FLAG) {
        // Nobody would take it off the list when the socket closes early.
        flows::client_closed(&tuple, flow.client_cookie);
        count(KernelReason::FlowTaken);
    }
}

/// Asks to be called also in these cases; the helper replaces the flags, and other programs' must stay.
#[inline(always)]
pub fn add_flags(context: &SockOpsContext, flags: u32) -> bool {
    context.set_cb_flags((context.cb_flags() | flags) as i32).is_ok()
}

/// A listener got a connection; `accept()` has not returned it yet.
#[inline(always)]
fn accepted(context: &SockOpsContext, sk: *mut bpf_sock) {
    let netns = netns(context);
    // SAFETY: the entry is not changed in place, and the kernel keeps it until the program ends.
    let Some(pod) = (unsafe { PODS.get(netns) }) else { return };
    let flow = FlowKey {
        netns,
        client: remote(context),
        client_port: remote_port(context),
        server_port: local_port(context),
        reserved: 0,
    };
    // SAFETY: as above.
    let Some(handoff) = (unsafe { HANDOFFS.get(flow) }) else {
        let tuple = Tuple {
            client: flow.client,
            server: local(context),
            client_port: flow.client_port,
            server_port: flow.server_port,
        };
        if !tuple.client.is_local() && tuple.client != tuple.server && !sockets::is_own(sk) {
            established::opened(context, sk, netns, pod, &tuple);
        }
        return;
    };
    let role = if handoff.role == Role::Captured as u32 { Role::Captured } else { Role::Server };
    let known = Socket { chosen: handoff.chosen, ..Socket::new(role, handoff.address, handoff.port) };
    if !sockets::set(sk, known) {
        count(KernelReason::HandoffLost);
    }
    sockets::take(&flow);
}

/// A socket goes from one state to another.
#[inline(always)]
fn changed(context: &SockOpsContext, sk: *mut bpf_sock) {
    let (old, new) = (context.arg(0), context.arg(1));
    if let Some(accepted) = sockets::accepted(sk) {
        established::changed(context, accepted, old, new);
    } else if new == BPF_TCP_CLOSE {
        closed(context, sk);
    }
}

/// A connecting socket closed: if nobody took its hand-off, nobody will.
#[inline(always)]
fn closed(context: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(socket) = sockets::get(sk) else { return };
    if socket.role == Role::DirectClient as u32 {
        return flows::client_closed(&outgoing(context), socket_cookie(context));
    }
    if socket.flow.netns == NetnsCookie(0) {
        return;
    }
    let flow = socket.flow;
    socket.flow.netns = NetnsCookie(0);
    // SAFETY: as in `accepted`.
    if let Some(handoff) = unsafe { HANDOFFS.get(flow) }
        && handoff.owner == socket_cookie(context)
    {
        sockets::take(&flow);
    }
}

#[inline(always)]
fn netns(context: &SockOpsContext) -> NetnsCookie {
    // SAFETY: the helper takes this context.
    NetnsCookie(unsafe { bpf_get_netns_cookie(context.as_ptr()) })
}

#[inline(always)]
pub fn socket_cookie(context: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes this context.
    unsafe { bpf_get_socket_cookie(context.as_ptr()) }
}

/// A connecting socket's connection.
#[inline(always)]
fn outgoing(context: &SockOpsContext) -> Tuple {
    Tuple {
        client: local(context),
        server: remote(context),
        client_port: local_port(context),
        server_port: remote_port(context),
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
