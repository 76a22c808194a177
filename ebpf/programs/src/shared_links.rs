//! The programs at the node's end of a shared link (tcx), where others could listen and speak as the pod.
//!
//! SYN and SYN-ACK of a direct connection go the normal way, over the bridge and past the node's packet
//! filter: the network's own policy decides, and each must have left its own pod's link. Every other packet
//! goes from one link straight into the other pod's namespace (`bpf_redirect_peer`), and what comes any other
//! way is dropped. There is no way back in the middle of a connection.

use ambit_abi::{HardwareAddress, KernelReason, LinkFlow, LinkKind, Tuple};
use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_redirect_peer, bpf_skb_change_type};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::context::field;
use crate::links::{event, set};
use crate::maps::{LINK_FLOWS, LINKS, LOCALS, count};
use crate::packet::{self, ACK, FIN, Packet, RST, SYN, Segment};

const PACKET_HOST: u32 = 0;
const HANDSHAKE: u8 = SYN | ACK | RST | FIN;

/// What leaves the pod.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let mut segment = Segment::default();
    match packet::read(skb, &mut segment) {
        Packet::Tcp => leave(skb, &segment),
        Packet::Hidden if LOCALS.get_ptr(segment.tuple.server).is_some() => {
            drop_for(KernelReason::LinkPacketHidden)
        }
        _ => TC_ACT_UNSPEC,
    }
}

/// What reaches the pod by the normal way.
#[classifier]
pub fn to_pod(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let mut segment = Segment::default();
    match packet::read(skb, &mut segment) {
        Packet::Tcp => arrive(skb, &segment),
        Packet::Hidden if LOCALS.get_ptr(segment.tuple.client).is_some() => {
            drop_for(KernelReason::LinkPacketHidden)
        }
        Packet::Tagged => drop_for(KernelReason::LinkPacketHidden),
        Packet::Neighbour(hardware) if is_forged(&segment, hardware) => {
            drop_for(KernelReason::LinkNeighbourForged)
        }
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn leave(skb: *mut __sk_buff, segment: &Segment) -> i32 {
    // SAFETY: a field of this hook's context. Entries of the map are kept until the program ends.
    unsafe {
        let interface = field!(skb, __sk_buff.ifindex);
        if let Some(flow) = LINK_FLOWS.get_ptr_mut(segment.tuple) {
            if interface != (*flow).client_interface {
                return forged(segment);
            }
            leave_client(skb, segment, flow)
        } else if let Some(flow) = LINK_FLOWS.get_ptr_mut(reversed(&segment.tuple)) {
            if interface != (*flow).server_interface {
                return forged(segment);
            }
            leave_server(skb, segment, flow)
        } else {
            TC_ACT_UNSPEC
        }
    }
}

/// # Safety
/// The pointers must be the hook's context and an entry of the map.
#[inline(always)]
unsafe fn leave_client(skb: *mut __sk_buff, segment: &Segment, flow: *mut LinkFlow) -> i32 {
    // SAFETY: the caller's obligation.
    unsafe {
        let proven = event(&raw const (*flow).syn_ack);
        let sequence = &raw mut (*flow).client_sequence;
        if segment.flags & SYN != 0 && (!proven || segment.sequence == sequence.read_volatile()) {
            if segment.flags & HANDSHAKE != SYN {
                return forged(segment);
            }
            if segment.has_payload {
                // TCP fast open: the data would go over the bridge. The kernel repeats the SYN without.
                return TC_ACT_SHOT;
            }
            sequence.write_volatile(segment.sequence);
            set(&raw mut (*flow).syn);
            return TC_ACT_UNSPEC;
        }
        redirect(skb, segment, proven, (*flow).server_interface)
    }
}

/// # Safety
/// As [`leave_client`].
#[inline(always)]
unsafe fn leave_server(skb: *mut __sk_buff, segment: &Segment, flow: *mut LinkFlow) -> i32 {
    // SAFETY: the caller's obligation.
    unsafe {
        let proven = event(&raw const (*flow).syn_ack);
        if segment.flags & SYN != 0 {
            let acknowledges = segment.acknowledged == (*flow).client_sequence.wrapping_add(1);
            let delivered = event(&raw const (*flow).delivered);
            if segment.flags & HANDSHAKE != SYN | ACK || segment.has_payload || !acknowledges || !delivered {
                return forged(segment);
            }
            // A server that sends SYN cookies may choose another number when it repeats itself.
            (&raw mut (*flow).server_sequence).write_volatile(segment.sequence);
            set(&raw mut (*flow).syn_ack);
            return TC_ACT_UNSPEC;
        }
        redirect(skb, segment, proven, (*flow).client_interface)
    }
}

/// Sends a packet into the namespace of the pod whose link ends at this interface. Before both ends are
/// proven, what carries no data may go the normal way: a server that refuses answers with a reset.
#[inline(always)]
fn redirect(skb: *mut __sk_buff, segment: &Segment, proven: bool, interface: u32) -> i32 {
    if !proven {
        return if segment.has_payload { forged(segment) } else { TC_ACT_UNSPEC };
    }
    // SAFETY: helpers for this hook's context.
    unsafe {
        // The frame is addressed to the bridge's port that A believes in. Kernels before 6.16 do not forget
        // that, and the pod would ignore it.
        if field!(skb, __sk_buff.pkt_type) != PACKET_HOST {
            bpf_skb_change_type(skb, PACKET_HOST);
        }
        bpf_redirect_peer(interface, 0) as i32
    }
}

#[inline(always)]
fn arrive(skb: *mut __sk_buff, segment: &Segment) -> i32 {
    // SAFETY: as in `leave`.
    unsafe {
        let interface = field!(skb, __sk_buff.ifindex);
        if let Some(flow) = LINK_FLOWS.get_ptr_mut(segment.tuple) {
            if interface != (*flow).server_interface {
                // A bridge floods what it does not know.
                return TC_ACT_SHOT;
            }
            let own = event(&raw const (*flow).syn) && segment.sequence == (*flow).client_sequence;
            if segment.flags & SYN != 0 {
                if segment.flags & HANDSHAKE != SYN || segment.has_payload || !own {
                    return forged(segment);
                }
                set(&raw mut (*flow).delivered);
                return TC_ACT_UNSPEC;
            }
            unproven(segment, flow)
        } else if let Some(flow) = LINK_FLOWS.get_ptr_mut(reversed(&segment.tuple)) {
            if interface != (*flow).client_interface {
                return TC_ACT_SHOT;
            }
            if segment.flags & SYN != 0 {
                let own = event(&raw const (*flow).syn_ack)
                    && segment.sequence == (*flow).server_sequence
                    && segment.acknowledged == (*flow).client_sequence.wrapping_add(1);
                if segment.flags & HANDSHAKE != SYN | ACK || segment.has_payload || !own {
                    return forged(segment);
                }
                return TC_ACT_UNSPEC;
            }
            unproven(segment, flow)
        } else {
            TC_ACT_UNSPEC
        }
    }
}

/// What is neither SYN nor SYN-ACK comes the normal way only before both ends are proven, and without data.
///
/// # Safety
/// The pointer must be an entry of the map.
#[inline(always)]
unsafe fn unproven(segment: &Segment, flow: *mut LinkFlow) -> i32 {
    // SAFETY: the caller's obligation.
    if segment.has_payload || unsafe { event(&raw const (*flow).syn_ack) } {
        forged(segment)
    } else {
        TC_ACT_UNSPEC
    }
}

#[inline(always)]
fn forged(segment: &Segment) -> i32 {
    if segment.flags & SYN != 0 {
        drop_for(KernelReason::LinkHandshakeForged)
    } else {
        drop_for(KernelReason::LinkPacketForged)
    }
}

#[inline(always)]
fn drop_for(reason: KernelReason) -> i32 {
    count(reason);
    TC_ACT_SHOT
}

/// Whether a message claims the address of a pod behind the same kind of link for another interface. A bridge
/// may answer for its pods.
#[inline(always)]
fn is_forged(segment: &Segment, hardware: HardwareAddress) -> bool {
    // SAFETY: the kernel keeps entries until the program ends; they are replaced, or changed in one write.
    unsafe {
        let Some(number) = LOCALS.get_ptr(segment.tuple.client).map(|number| number.read_volatile()) else {
            return false;
        };
        let Some(link) = LINKS.get(number) else { return false };
        link.kind == LinkKind::Shared as u8
            && link.bridge != [0; 6]
            && hardware != link.pod
            && hardware != link.bridge
    }
}

#[inline(always)]
fn reversed(tuple: &Tuple) -> Tuple {
    Tuple {
        client: tuple.server,
        server: tuple.client,
        client_port: tuple.server_port,
        server_port: tuple.client_port,
    }
}
