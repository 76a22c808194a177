//! The server's end of connections that no daemon carries: listed when they are established, and counted when
//! they close, exactly.
//!
//! The kernel's byte counts include a FIN that was received, and one that was sent and acknowledged. Whether
//! there was one follows from the state the socket closes from, but for two cases. From FIN_WAIT2 a socket
//! closes when the peer's FIN comes, and also without it (nobody waits for it any more): there the segment
//! that carries it is watched for. From LAST_ACK and CLOSING it closes when its own FIN is acknowledged, and
//! also by a reset, perhaps before that FIN could leave: there it is watched for among what is sent.

use ambit_abi::{
    Accepted, Flow, InboundMode, KernelReason, NetnsCookie, Path, Pod, PortKey, PortRule, RecordKind, Tuple,
    WorkloadNumber,
};
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG,
    BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT1, BPF_TCP_FIN_WAIT2,
    BPF_TCP_LAST_ACK, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::programs::SockOpsContext;

use crate::context::{field, load_long};
use crate::flows;
use crate::maps::{FLOWS, NODE_ADDRESSES, PORTS, count};
use crate::records::{established as record, now, probably};
use crate::socket_operations::{add_flags, socket_cookie};
use crate::sockets;

const FIN: u32 = 1;
/// Of a TCP header without options.
const HEADER: usize = 20;

/// An app got a connection that is neither the daemon's nor from within the pod.
#[inline(always)]
pub fn opened(context: &SockOpsContext, sk: *mut bpf_sock, netns: NetnsCookie, pod: &Pod, tuple: &Tuple) {
    if !add_flags(context, BPF_SOCK_OPS_STATE_CB_FLAG) {
        return count(KernelReason::KernelMemory);
    }
    let Some(accepted) = sockets::accept(sk) else { return count(KernelReason::KernelMemory) };
    let cookie = socket_cookie(context);
    accepted.tuple = *tuple;
    // SAFETY: entries are replaced, not changed in place, and the kernel keeps them until the program ends.
    let listed = unsafe { FLOWS.get(tuple) }
        .filter(|flow| flow.path == Path::Direct as u8 && flow.destination == pod.number);
    if let Some(flow) = listed {
        accepted.flow = *flow;
        accepted.flow.server_cookie = cookie;
        accepted.flow.server_netns = netns;
        flows::take_over(tuple, &accepted.flow);
        accepted.probable = accepted.flow.source;
        record(RecordKind::Opened, KernelReason::Closed, accepted, 0, 0);
        // The policy may have changed since the SYN passed.
        if !flows::is_current(pod.number, accepted.flow.generation) {
            record(RecordKind::Stale, KernelReason::FlowStale, accepted, 0, 0);
        }
        return;
    }
    // SAFETY: entries are replaced, not changed in place.
    let rule = unsafe { PORTS.get(PortKey::new(netns, tuple.server_port)) };
    let probe = is_probe(rule, tuple);
    let open = probe || mode(pod, rule) == InboundMode::Open as u8;
    accepted.probable = probably(tuple.client);
    // Only a direct connection could pass here, and the client has closed its end meanwhile; or the mode has
    // changed.
    let direct = !open && accepted.probable != WorkloadNumber::NONE;
    accepted.flow.destination = pod.number;
    accepted.flow.server_cookie = cookie;
    accepted.flow.server_netns = netns;
    accepted.flow.opened = now();
    accepted.flow.path = if direct { Path::Direct as u8 } else { Path::Native as u8 };
    accepted.flow.flags = if probe { Flow::PROBE } else { 0 };
    flows::list(tuple, &accepted.flow);
    record(RecordKind::Opened, KernelReason::Closed, accepted, 0, 0);
    if !open {
        count(KernelReason::FlowGone);
        record(RecordKind::Stale, KernelReason::FlowGone, accepted, 0, 0);
    }
}

/// Whether this node's own address asks at a port that the pod declares as a probe.
#[inline(always)]
fn is_probe(rule: Option<&PortRule>, tuple: &Tuple) -> bool {
    rule.is_some_and(|rule| rule.probe != 0) && NODE_ADDRESSES.get_ptr(tuple.client).is_some()
}

#[inline(always)]
fn mode(pod: &Pod, rule: Option<&PortRule>) -> u8 {
    rule.map(|rule| rule.mode).filter(|mode| *mode != 0).unwrap_or(pod.mode)
}

/// The server's socket goes from one state to another.
#[inline(always)]
pub fn changed(context: &SockOpsContext, accepted: &mut Accepted, old: u32, new: u32) {
    match new {
        BPF_TCP_FIN_WAIT1 => {
            add_flags(context, BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
        }
        BPF_TCP_LAST_ACK => {
            add_flags(context, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
        }
        BPF_TCP_CLOSE if accepted.flow.server_cookie != 0 => closed(context, accepted, old),
        _ => {}
    }
}

#[inline(always)]
fn closed(context: &SockOpsContext, accepted: &mut Accepted, old: u32) {
    // SAFETY: fields of this hook's context.
    let (received, acknowledged, next_in, next_out, first_out) = unsafe {
        (
            load_long::<{ core::mem::offset_of!(bpf_sock_ops, bytes_received) }>(context.ops),
            load_long::<{ core::mem::offset_of!(bpf_sock_ops, bytes_acked) }>(context.ops),
            field!(context.ops, bpf_sock_ops.rcv_nxt),
            field!(context.ops, bpf_sock_ops.snd_nxt),
            field!(context.ops, bpf_sock_ops.snd_una),
        )
    };
    let seen = accepted.ends & Accepted::FIN_SEEN != 0 && next_in == accepted.end;
    let sent = accepted.ends & Accepted::FIN_SENT != 0 && next_out == first_out;
    let (theirs, ours) = match old {
        BPF_TCP_CLOSE_WAIT => (true, false),
        BPF_TCP_LAST_ACK | BPF_TCP_CLOSING => (true, sent),
        BPF_TCP_FIN_WAIT2 => (seen, true),
        _ => (false, false),
    };
    let reason = if ours { KernelReason::Closed } else { KernelReason::Reset };
    record(
        RecordKind::Closed,
        reason,
        accepted,
        received.wrapping_sub(theirs.into()),
        acknowledged.wrapping_sub(ours.into()),
    );
    flows::server_closed(&accepted.tuple, accepted.flow.server_cookie);
    accepted.flow.server_cookie = 0;
}

/// A segment arrives while we wait for the peer's FIN.
#[inline(always)]
pub fn arrives(context: &SockOpsContext, accepted: &mut Accepted) {
    // SAFETY: fields of this hook's context.
    let (flags, length) = unsafe {
        (field!(context.ops, bpf_sock_ops.skb_tcp_flags), field!(context.ops, bpf_sock_ops.skb_len))
    };
    if flags & FIN == 0 {
        return;
    }
    // SAFETY: fields of this hook's context; the verifier wants the end compared before anything is read.
    unsafe {
        let data = (*context.ops).__bindgen_anon_3.skb_data as usize;
        let end = (*context.ops).__bindgen_anon_4.skb_data_end as usize;
        if data + HEADER > end {
            return;
        }
        let header = data as *const u8;
        let sequence = u32::from_be(header.add(4).cast::<u32>().read_volatile());
        let words = u32::from(header.add(12).read_volatile() >> 4);
        accepted.end = sequence.wrapping_add(length).wrapping_sub(words * 4).wrapping_add(1);
    }
    accepted.ends |= Accepted::FIN_SEEN;
}

/// A segment leaves after we have closed.
#[inline(always)]
pub fn leaves(context: &SockOpsContext, accepted: &mut Accepted) {
    // SAFETY: a field of this hook's context; zero where there is no segment yet.
    if unsafe { field!(context.ops, bpf_sock_ops.skb_tcp_flags) } & FIN != 0 {
        accepted.ends |= Accepted::FIN_SENT;
    }
}
