//! `sockops`: connects the two ends of a connection inside a pod, and tracks direct flows.
//!
//! The source port of a captured connection is first known when its SYN is sent. There the original
//! destination becomes a hand-off, which ztunnel's accepted socket takes. A connection that ztunnel makes to
//! an app passes the real client's address to the app's accepted socket in the same way. Direct flows are
//! tracked from that moment, and connections of the node's own processes listed (`probes`). `established`
//! handles their servers' sockets and those of native connections.

use ambit_abi::{
    FlowEntry, Handoff, HandoffKey, KernelReason, NetnsCookie, Path, Role, Socket, SocketAddress, Tuple,
};
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_PARSE_HDR_OPT_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, bpf_sock,
};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;

use crate::clock::now;
use crate::log::decision;
use crate::maps::{HANDOFFS, PODS, count};
use crate::operation::{add_flags, incoming, netns, outgoing, socket_cookie, strand};
use crate::{established, flows, handoffs, links, probes, sockets};

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
                    established::segment_arrives(&context, accepted);
                }
            }
            BPF_SOCK_OPS_HDR_OPT_LEN_CB => {
                if let Some(accepted) = sockets::accepted(sk) {
                    established::segment_leaves(&context, accepted);
                }
            }
            _ => {}
        }
    }
    1
}

/// The SYN is about to be sent.
#[inline(always)]
fn connecting(context: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(socket) = sockets::get(sk) else { return probes::connecting(context) };
    let role = match socket.role {
        role if role == Role::Client as u32 => Role::Captured,
        role if role == Role::Inbound as u32 => Role::Server,
        role if role == Role::DirectClient as u32 => return track_direct(context, socket),
        _ => return,
    };
    let tuple = outgoing(context);
    let key = HandoffKey {
        netns: netns(context),
        client: tuple.client,
        client_port: tuple.client_port,
        server_port: tuple.server_port,
        reserved: 0,
    };
    let handoff = Handoff {
        owner: socket_cookie(context),
        address: socket.address,
        port: socket.port,
        reserved: 0,
        role: role as u32,
        endpoint: socket.endpoint,
        unused: 0,
    };
    if !handoffs::insert(&key, &handoff) {
        decision!(
            context,
            "sockops: no hand-off",
            key.netns,
            tuple.client,
            tuple.client_port,
            KernelReason::HandoffLost
        );
        count(KernelReason::HandoffLost);
        return;
    }
    socket.handoff = key;
    if !add_flags(context, BPF_SOCK_OPS_STATE_CB_FLAG) {
        // Without the callback nothing would remove the hand-off when the socket closes early.
        handoffs::remove(&key);
        count(KernelReason::HandoffLost);
    }
}

/// The SYN of a direct connection is about to be sent. From here on the flow is tracked; the inbound program
/// passes only tracked flows.
#[inline(always)]
fn track_direct(context: &SockOpsContext, socket: &Socket) {
    let tuple = outgoing(context);
    let netns = netns(context);
    // Another program of the connect hook may have changed the destination after the decision. (Without an
    // endpoint to compare, the decision was made by an earlier build's program.)
    let destination = SocketAddress::new(tuple.server, tuple.server_port);
    if !socket.endpoint.is_unset() && socket.endpoint != destination {
        decision!(
            context,
            "sockops: direct flow not tracked",
            netns,
            tuple.server,
            tuple.server_port,
            KernelReason::FlowMisdirected
        );
        return count(KernelReason::FlowMisdirected);
    }
    let Some((client, server)) = links::between(socket.source, socket.destination) else {
        return lose(context, &tuple, netns, KernelReason::LinkLost);
    };
    let shared = links::is_shared(&client);
    let flow = FlowEntry {
        source: socket.source,
        destination: socket.destination,
        generation: socket.generation,
        client_cookie: socket_cookie(context),
        server_cookie: 0,
        client_netns: netns,
        server_netns: NetnsCookie(0),
        opened: now(),
        original_destination: SocketAddress::new(socket.address, socket.port),
        path: Path::Direct as u8,
        flags: if shared { FlowEntry::SHARED } else { 0 },
        reserved: [0; 2],
    };
    // Without the callback nothing would remove what is tracked here when the socket closes early.
    if !add_flags(context, BPF_SOCK_OPS_STATE_CB_FLAG) {
        return lose(context, &tuple, netns, KernelReason::FlowTaken);
    }
    // First: from now on nothing of the connection passes the links another way.
    if shared && !links::track(&tuple, &flow, &client, &server) {
        return lose(context, &tuple, netns, KernelReason::LinkLost);
    }
    if !flows::track_outgoing(&tuple, &flow) {
        lose(context, &tuple, netns, KernelReason::FlowTaken);
    }
}

/// A direct connection that cannot be tracked is not made: its SYN finds no way out of the pod.
#[inline(always)]
fn lose(context: &SockOpsContext, tuple: &Tuple, netns: NetnsCookie, reason: KernelReason) {
    decision!(context, "sockops: direct flow not tracked", netns, tuple.server, tuple.server_port, reason);
    #[cfg(not(feature = "log"))]
    let _ = (tuple, netns);
    strand(context);
    count(reason);
}

/// A listener got a connection, which `accept()` has not returned yet.
#[inline(always)]
fn accepted(context: &SockOpsContext, sk: *mut bpf_sock) {
    let netns = netns(context);
    // SAFETY: the entry is not changed in place, and the kernel keeps it until the program ends.
    let Some(pod) = (unsafe { PODS.get(netns) }) else { return };
    let tuple = incoming(context);
    let key = HandoffKey {
        netns,
        client: tuple.client,
        client_port: tuple.client_port,
        server_port: tuple.server_port,
        reserved: 0,
    };
    // SAFETY: as above.
    let Some(handoff) = (unsafe { HANDOFFS.get(key) }) else {
        if !tuple.client.is_local() && tuple.client != tuple.server && !sockets::is_own(sk) {
            established::opened(context, sk, netns, pod, &tuple);
        }
        return;
    };
    let role = if handoff.role == Role::Captured as u32 { Role::Captured } else { Role::Server };
    let state = Socket { endpoint: handoff.endpoint, ..Socket::new(role, handoff.address, handoff.port) };
    if !sockets::set(sk, state) {
        count(KernelReason::HandoffLost);
    }
    handoffs::remove(&key);
}

/// A socket changes its TCP state.
#[inline(always)]
fn changed(context: &SockOpsContext, sk: *mut bpf_sock) {
    let (old, new) = (context.arg(0), context.arg(1));
    if let Some(accepted) = sockets::accepted(sk) {
        established::changed(context, accepted, old, new);
    } else if new == BPF_TCP_CLOSE {
        closed(context, sk);
    }
}

/// A connecting socket closed. If its hand-off was not taken, it never will be.
#[inline(always)]
fn closed(context: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(socket) = sockets::get(sk) else { return probes::closed(context) };
    if socket.role == Role::DirectClient as u32 {
        let (tuple, cookie) = (outgoing(context), socket_cookie(context));
        links::client_closed(&tuple, cookie);
        return flows::client_closed(&tuple, cookie);
    }
    if socket.handoff.netns == NetnsCookie(0) {
        return;
    }
    let key = socket.handoff;
    socket.handoff.netns = NetnsCookie(0);
    // SAFETY: as in `accepted`.
    if let Some(handoff) = unsafe { HANDOFFS.get(key) }
        && handoff.owner == socket_cookie(context)
    {
        handoffs::remove(&key);
    }
}
