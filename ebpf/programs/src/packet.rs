//! Packets on a link, as far as the programs on shared links need to know them: [`read`].

use core::mem::offset_of;

use ambit_abi::{Address, HardwareAddress, Tuple};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_pull_data;

use crate::context::{field, load_pointer};

/// TCP flags.
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// Bytes of headers without options.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
const ARP: usize = 28;
/// A neighbour solicitation or advertisement, without and with its first option.
const NEIGHBOUR: usize = 24;
const NEIGHBOUR_OPTION: usize = 8;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021AD: u16 = 0x88a8;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_NONE: u8 = 59;
const IPPROTO_SCTP: u8 = 132;
/// "Don't fragment" is the only bit that a whole packet may have.
const FRAGMENT: u16 = 0x3fff;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// A TCP segment. Its tuple's client is the sender.
#[derive(Default)]
pub struct Segment {
    pub tuple: Tuple,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub has_payload: bool,
}

/// What a packet is.
pub enum Packet {
    /// Nothing that concerns direct connections.
    Other,
    /// A TCP segment, as written to the `Segment`.
    Tcp,
    /// May hide a TCP segment between the addresses of the `Segment`.
    Hidden,
    /// An Ethernet frame with a VLAN tag: with tag 0 the kernel takes it as if it had none.
    Tagged,
    /// Says that the sender's address of the `Segment` is at this interface.
    Neighbour(HardwareAddress),
}

/// Reads a packet.
#[inline(always)]
pub fn read(skb: *mut __sk_buff, segment: &mut Segment) -> Packet {
    // SAFETY: a field of this hook's context.
    if unsafe { field!(skb, __sk_buff.vlan_present) } != 0 {
        return Packet::Tagged;
    }
    let Some(packet) = bytes(skb, ETHERNET + IPV4) else { return Packet::Other };
    // SAFETY: here and below the offsets are within the bytes that were asked for.
    match u16::from_be(unsafe { packet.add(12).cast::<u16>().read_volatile() }) {
        ETH_P_IP => read_ipv4(skb, packet, segment),
        ETH_P_IPV6 => read_ipv6(skb, segment),
        ETH_P_ARP => read_arp(skb, segment),
        ETH_P_8021Q | ETH_P_8021AD => Packet::Tagged,
        _ => Packet::Other,
    }
}

#[inline(always)]
fn read_ipv4(skb: *mut __sk_buff, packet: *const u8, segment: &mut Segment) -> Packet {
    // SAFETY: as above.
    unsafe {
        if packet.add(ETHERNET + 9).read_volatile() != IPPROTO_TCP {
            return Packet::Other;
        }
        segment.tuple.client = Address::mapped(word(packet, ETHERNET + 12));
        segment.tuple.server = Address::mapped(word(packet, ETHERNET + 16));
        let fragment = u16::from_be(packet.add(ETHERNET + 6).cast::<u16>().read_volatile());
        if packet.add(ETHERNET).read_volatile() != 0x45 || fragment & FRAGMENT != 0 {
            return Packet::Hidden;
        }
    }
    read_tcp::<{ ETHERNET + IPV4 }>(skb, segment)
}

#[inline(always)]
fn read_ipv6(skb: *mut __sk_buff, segment: &mut Segment) -> Packet {
    let Some(packet) = bytes(skb, ETHERNET + IPV6) else { return Packet::Other };
    // SAFETY: as above.
    let next = unsafe {
        segment.tuple.client = address(packet, ETHERNET + 8);
        segment.tuple.server = address(packet, ETHERNET + 24);
        packet.add(ETHERNET + 6).read_volatile()
    };
    match next {
        IPPROTO_TCP => read_tcp::<{ ETHERNET + IPV6 }>(skb, segment),
        IPPROTO_UDP | IPPROTO_SCTP | IPPROTO_NONE => Packet::Other,
        IPPROTO_ICMPV6 => read_icmpv6(skb, segment),
        // An extension header, behind which anything may follow.
        _ => Packet::Hidden,
    }
}

#[inline(always)]
fn read_tcp<const AT: usize>(skb: *mut __sk_buff, segment: &mut Segment) -> Packet {
    let Some(packet) = bytes(skb, AT + TCP) else { return Packet::Hidden };
    // SAFETY: as above; a field of this hook's context.
    unsafe {
        segment.tuple.client_port = u16::from_be(packet.add(AT).cast::<u16>().read_volatile());
        segment.tuple.server_port = u16::from_be(packet.add(AT + 2).cast::<u16>().read_volatile());
        segment.sequence = u32::from_be(word(packet, AT + 4));
        segment.acknowledged = u32::from_be(word(packet, AT + 8));
        let words = u32::from(packet.add(AT + 12).read_volatile() >> 4);
        segment.flags = packet.add(AT + 13).read_volatile();
        segment.has_payload = field!(skb, __sk_buff.len) > AT as u32 + words * 4;
    }
    Packet::Tcp
}

#[inline(always)]
fn read_arp(skb: *mut __sk_buff, segment: &mut Segment) -> Packet {
    let Some(packet) = bytes(skb, ETHERNET + ARP) else { return Packet::Other };
    // SAFETY: as above.
    unsafe {
        // The sender's protocol address is at an even offset that is no multiple of four.
        let halves = [22 + 6, 22 + 8].map(|at| u32::from(packet.add(at).cast::<u16>().read_volatile()));
        segment.tuple.client = Address::mapped(halves[0] | halves[1] << 16);
        Packet::Neighbour(hardware(packet, 22))
    }
}

/// A message without an option changes no neighbour. One whose first option is another than the interface's
/// address does not come from a kernel: it is taken for a claim of no interface.
#[inline(always)]
fn read_icmpv6(skb: *mut __sk_buff, segment: &mut Segment) -> Packet {
    const AT: usize = ETHERNET + IPV6;
    let Some(packet) = bytes(skb, AT + NEIGHBOUR + NEIGHBOUR_OPTION) else { return Packet::Other };
    // SAFETY: as above.
    unsafe {
        let (kind, option) = (packet.add(AT).read_volatile(), packet.add(AT + NEIGHBOUR).read_volatile());
        let expected = match kind {
            SOLICITATION => 1,
            ADVERTISEMENT => {
                segment.tuple.client = address(packet, AT + 8);
                2
            }
            _ => return Packet::Other,
        };
        if option == expected {
            Packet::Neighbour(hardware(packet, AT + NEIGHBOUR + 2))
        } else {
            Packet::Neighbour([0; 6])
        }
    }
}

/// The first bytes of the packet, which must lie in one piece: bytes in pages that a process shares
/// (`PACKET_TX_RING`) could still be changed. None: there are not as many.
#[inline(always)]
fn bytes(skb: *mut __sk_buff, count: usize) -> Option<*const u8> {
    // SAFETY: fields of this hook's context. The verifier requires a comparison with the end before any read.
    unsafe {
        if let Some(packet) = linear(skb, count) {
            return Some(packet);
        }
        if (field!(skb, __sk_buff.len) as usize) < count || bpf_skb_pull_data(skb, count as u32) != 0 {
            return None;
        }
        linear(skb, count)
    }
}

/// # Safety
/// The pointer must be the hook's context.
#[inline(always)]
unsafe fn linear(skb: *mut __sk_buff, count: usize) -> Option<*const u8> {
    // SAFETY: the caller's obligation.
    let (data, end) = unsafe {
        (
            load_pointer::<{ offset_of!(__sk_buff, data) }>(skb),
            load_pointer::<{ offset_of!(__sk_buff, data_end) }>(skb),
        )
    };
    (data + count <= end).then_some(data as *const u8)
}

/// # Safety
/// There must be four bytes at the offset.
#[inline(always)]
unsafe fn word(packet: *const u8, at: usize) -> u32 {
    // SAFETY: the caller's obligation. The kernel places packets such that IP headers are aligned.
    unsafe { packet.add(at).cast::<u32>().read_volatile() }
}

/// # Safety
/// There must be 16 bytes at the offset.
#[inline(always)]
unsafe fn address(packet: *const u8, at: usize) -> Address {
    // SAFETY: the caller's obligation.
    unsafe { Address([word(packet, at), word(packet, at + 4), word(packet, at + 8), word(packet, at + 12)]) }
}

/// # Safety
/// There must be six bytes at the offset.
#[inline(always)]
unsafe fn hardware(packet: *const u8, at: usize) -> HardwareAddress {
    // SAFETY: the caller's obligation.
    [0, 1, 2, 3, 4, 5].map(|index: usize| unsafe { packet.add(at + index).read_volatile() })
}
