//! Servers' sockets of connections that no daemon carries: tracked when they are established, and counted
//! exactly when they close.
//!
//! The kernel's byte counts include a received FIN, and a sent FIN that was acknowledged. The state from
//! which the socket closes shows whether there was one, except in two cases. From FIN_WAIT2 a socket closes
//! when the peer's FIN arrives, and also without one when the socket is orphaned: there the program looks for
//! the segment with the FIN. From LAST_ACK and CLOSING it closes when its own FIN is acknowledged, and also
//! by a reset, perhaps before the FIN was sent: there the program looks for the FIN among the sent segments.

use ambit_abi::{
    Accepted, FlowEntry, InboundMode, KernelReason, NetnsCookie, Path, Pod, PortKey, PortRule, RecordKind,
    Tuple, WorkloadNumber,
};
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG,
    BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT1, BPF_TCP_FIN_WAIT2,
    BPF_TCP_LAST_ACK, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::programs::SockOpsContext;

use crate::clock::now;
use crate::context::{field, load_long};
use crate::log::decision;
use crate::maps::{FLOWS, PORTS, count};
use crate::operation::{add_flags, socket_cookie};
use crate::records::{established as record, probable_workload};
use crate::{flows, links, probes, sockets, verdicts};

const FIN: u32 = 1;
/// Bytes of a TCP header without options.
const HEADER: usize = 20;

/// An app got a connection that is neither the daemon's nor from the pod itself.
#[inline(always)]
pub fn opened(context: &SockOpsContext, sk: *mut bpf_sock, netns: NetnsCookie, pod: &Pod, tuple: &Tuple) {
    if !add_flags(context, BPF_SOCK_OPS_STATE_CB_FLAG) {
        return count(KernelReason::KernelMemory);
    }
    let Some(accepted) = sockets::accept(sk) else { return count(KernelReason::KernelMemory) };
    let cookie = socket_cookie(context);
    accepted.tuple = *tuple;
    // SAFETY: entries are replaced, not changed in place, and the kernel keeps them until the program ends.
    let tracked = unsafe { FLOWS.get(tuple) }
        .filter(|flow| flow.path == Path::Direct as u8 && flow.destination == pod.number);
    if let Some(flow) = tracked {
        accepted.flow = *flow;
        accepted.flow.server_cookie = cookie;
        accepted.flow.server_netns = netns;
        if flow.flags & FlowEntry::SHARED != 0 {
            links::accepted(tuple, flow.client_cookie);
        }
        let tracked = flows::track_accepted(tuple, &accepted.flow);
        accepted.probable_source = accepted.flow.source;
        record(RecordKind::Opened, KernelReason::Closed, accepted, 0, 0);
        if !tracked {
            return untracked(context, accepted);
        }
        // The policy may have changed since the SYN passed.
        if verdicts::is_current(pod.number, accepted.flow.generation) {
            decision!(context, "sockops: direct flow established", netns, tuple.client, tuple.client_port);
        } else {
            decision!(
                context,
                "sockops: direct flow is to be checked",
                netns,
                tuple.client,
                tuple.client_port,
                KernelReason::FlowStale
            );
            record(RecordKind::Stale, KernelReason::FlowStale, accepted, 0, 0);
        }
        return;
    }
    // SAFETY: entries are replaced, not changed in place.
    let rule = unsafe { PORTS.get(PortKey::new(netns, tuple.server_port)) };
    let probe = probes::is_probe(rule, tuple);
    let open = probe || mode(pod, rule) == InboundMode::Open as u8;
    accepted.probable_source = probable_workload(tuple.client);
    // Only a direct connection can pass here, whose client has closed its end meanwhile; or the mode has
    // changed.
    let direct = !open && accepted.probable_source != WorkloadNumber::NONE;
    accepted.flow.destination = pod.number;
    accepted.flow.server_cookie = cookie;
    accepted.flow.server_netns = netns;
    accepted.flow.opened = now();
    accepted.flow.path = if direct { Path::Direct as u8 } else { Path::Native as u8 };
    accepted.flow.flags = if probe { FlowEntry::PROBE } else { 0 };
    if direct && let Some(cookie) = links::adopt(tuple) {
        accepted.flow.client_cookie = cookie;
        accepted.flow.flags = FlowEntry::SHARED;
    }
    let tracked = flows::track_established(tuple, &accepted.flow);
    record(RecordKind::Opened, KernelReason::Closed, accepted, 0, 0);
    if !tracked {
        return untracked(context, accepted);
    }
    if open {
        decision!(context, "sockops: native flow established", netns, tuple.client, tuple.client_port);
    } else {
        decision!(
            context,
            "sockops: flow is to be checked",
            netns,
            tuple.client,
            tuple.client_port,
            KernelReason::FlowGone
        );
        count(KernelReason::FlowGone);
        record(RecordKind::Stale, KernelReason::FlowGone, accepted, 0, 0);
    }
}

/// A change of policy would not find it: the daemon closes it.
#[inline(always)]
#[cfg_attr(not(feature = "log"), expect(unused_variables, reason = "the log alone reads it"))]
fn untracked(context: &SockOpsContext, accepted: &Accepted) {
    let (netns, tuple) = (accepted.flow.server_netns, &accepted.tuple);
    decision!(
        context,
        "sockops: flow is to be closed",
        netns,
        tuple.client,
        tuple.client_port,
        KernelReason::FlowsExhausted
    );
    count(KernelReason::FlowsExhausted);
    record(RecordKind::Untracked, KernelReason::FlowsExhausted, accepted, 0, 0);
}

#[inline(always)]
fn mode(pod: &Pod, rule: Option<&PortRule>) -> u8 {
    rule.map(|rule| rule.mode).filter(|mode| *mode != 0).unwrap_or(pod.mode)
}

/// The server's socket changes its TCP state.
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
    let seen = accepted.fins & Accepted::FIN_SEEN != 0 && next_in == accepted.fin_sequence;
    let sent = accepted.fins & Accepted::FIN_SENT != 0 && next_out == first_out;
    let (peer_fin, own_fin) = match old {
        BPF_TCP_CLOSE_WAIT => (true, false),
        BPF_TCP_LAST_ACK | BPF_TCP_CLOSING => (true, sent),
        BPF_TCP_FIN_WAIT2 => (seen, true),
        _ => (false, false),
    };
    let reason = if own_fin { KernelReason::Closed } else { KernelReason::Reset };
    record(
        RecordKind::Closed,
        reason,
        accepted,
        received.wrapping_sub(peer_fin.into()),
        acknowledged.wrapping_sub(own_fin.into()),
    );
    if accepted.flow.flags & FlowEntry::SHARED != 0 {
        links::server_closed(&accepted.tuple, accepted.flow.client_cookie);
    }
    flows::server_closed(&accepted.tuple, accepted.flow.server_cookie);
    accepted.flow.server_cookie = 0;
}

/// A segment arrives after we have closed: it may carry the peer's FIN.
#[inline(always)]
pub fn segment_arrives(context: &SockOpsContext, accepted: &mut Accepted) {
    // SAFETY: fields of this hook's context.
    let (flags, length) = unsafe {
        (field!(context.ops, bpf_sock_ops.skb_tcp_flags), field!(context.ops, bpf_sock_ops.skb_len))
    };
    if flags & FIN == 0 {
        return;
    }
    // SAFETY: fields of this hook's context; the verifier requires a comparison with the end before any read.
    unsafe {
        let data = (*context.ops).__bindgen_anon_3.skb_data as usize;
        let end = (*context.ops).__bindgen_anon_4.skb_data_end as usize;
        if data + HEADER > end {
            return;
        }
        let header = data as *const u8;
        let sequence = u32::from_be(header.add(4).cast::<u32>().read_volatile());
        let words = u32::from(header.add(12).read_volatile() >> 4);
        accepted.fin_sequence = sequence.wrapping_add(length).wrapping_sub(words * 4).wrapping_add(1);
    }
    accepted.fins |= Accepted::FIN_SEEN;
}

/// A segment is sent after we have closed: it may carry our FIN.
#[inline(always)]
pub fn segment_leaves(context: &SockOpsContext, accepted: &mut Accepted) {
    // SAFETY: a field of this hook's context; zero where there is no segment yet.
    if unsafe { field!(context.ops, bpf_sock_ops.skb_tcp_flags) } & FIN != 0 {
        accepted.fins |= Accepted::FIN_SENT;
    }
}
