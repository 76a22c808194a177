//! A hostile neighbour's raw packets: Ethernet frames with forged addresses ([`Forger`]), and what of a
//! connection an all-knowing attacker would fill them with ([`last_segment`]).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use ambit_harness::{Place, Trace};
use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, send, socket,
};

/// An Ethernet address.
pub type Hardware = [u8; 6];

pub const SYN: u8 = 2;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// A TCP header and a little more: the kernel refuses a shorter one over IPv6.
const OFFSET: u16 = 24;
const FIRST_FRAGMENT: usize = OFFSET as usize;

/// Sends frames out of a pod's `eth0`, as `CAP_NET_RAW` allows.
#[derive(Debug)]
pub struct Forger {
    socket: OwnedFd,
}

impl Forger {
    /// In a place.
    pub fn open(place: &Place) -> Result<Self> {
        let opened = place.run(|| -> Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            let index = nix::net::if_::if_nametoindex("eth0")?;
            nix::sys::socket::bind(socket.as_raw_fd(), &interface(index)?)?;
            Ok(socket)
        })?;
        Ok(Self { socket: opened.context("failed to open a packet socket")? })
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).context("failed to send a frame")?;
        Ok(())
    }
}

/// `struct sockaddr_ll` of an interface, all protocols.
fn interface(index: u32) -> Result<LinkAddr> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let mut links = interfaces.filter_map(|it| it.address?.as_link_addr().copied());
    let found = links.find(|link| u32::try_from(link.ifindex()) == Ok(index));
    let link = found.context("the interface has no link address")?;
    debug_assert!(link.family() == Some(AddressFamily::Packet));
    Ok(link)
}

/// The Ethernet address of an interface of a place.
pub fn hardware(place: &Place, interface: &str) -> Result<Hardware> {
    let text = place.output("ip", &["-o", "link", "show", "dev", interface])?;
    let word = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    let mut octets =
        word.context("the interface has no address")?.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let mut address = [0; 6];
    for byte in &mut address {
        *byte = octets.next().context("the address is too short")??;
    }
    Ok(address)
}

/// A TCP segment to forge.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub payload: &'a [u8],
}

/// How a segment is hidden from who looks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disguise {
    Plain,
    /// With an IP option, or an IPv6 extension header, that means nothing.
    Options,
    /// In two IP fragments.
    Fragments,
    /// In a frame with VLAN tag 0, which the kernel takes as if it had none.
    Vlan,
}

impl Disguise {
    pub const ALL: [Self; 4] = [Self::Plain, Self::Options, Self::Fragments, Self::Vlan];
}

impl Segment<'_> {
    /// The frames that carry it.
    pub fn frames(&self, from: Hardware, to: Hardware, disguise: Disguise) -> Vec<Vec<u8>> {
        let tcp = self.tcp();
        let tag = [0x81, 0, 0, 0];
        let tag: &[u8] = if disguise == Disguise::Vlan { &tag } else { &[] };
        let packets = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from.octets(), to.octets(), &tcp, disguise),
            (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from.octets(), to.octets(), &tcp, disguise),
            _ => Vec::new(),
        };
        let kind: [u8; 2] = if self.from.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        packets.into_iter().map(|packet| [&to, &from, tag, &kind, &packet[..]].concat()).collect()
    }

    fn tcp(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        tcp.extend([5 << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(self.payload);
        let length = u32::try_from(tcp.len()).unwrap_or(u32::MAX);
        let sum = checksum(&[pseudo(self.from.ip(), self.to.ip(), 6, length), tcp.clone()].concat());
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }
}

fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: u32) -> Vec<u8> {
    let mut header = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(v4) => header.extend(v4.octets()),
            IpAddr::V6(v6) => header.extend(v6.octets()),
        }
    }
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0, protocol]);
    header
}

fn ipv4(from: [u8; 4], to: [u8; 4], tcp: &[u8], disguise: Disguise) -> Vec<Vec<u8>> {
    let packet = |options: &[u8], fragment: u16, body: &[u8]| {
        let mut header = vec![0x45 + u8::try_from(options.len() / 4).unwrap_or(0), 0];
        let length = u16::try_from(20 + options.len() + body.len()).unwrap_or(u16::MAX);
        header.extend(length.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(fragment.to_be_bytes());
        header.extend([64, 6, 0, 0]);
        header.extend(from);
        header.extend(to);
        header.extend(options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [header, body.to_vec()].concat()
    };
    match disguise {
        Disguise::Plain | Disguise::Vlan => vec![packet(&[], 0x4000, tcp)],
        Disguise::Options => vec![packet(&[1, 1, 1, 1], 0x4000, tcp)],
        Disguise::Fragments => {
            vec![packet(&[], 0x2000, &tcp[..FIRST_FRAGMENT]), packet(&[], OFFSET / 8, &tcp[FIRST_FRAGMENT..])]
        }
    }
}

fn ipv6(from: [u8; 16], to: [u8; 16], tcp: &[u8], disguise: Disguise) -> Vec<Vec<u8>> {
    let packet = |next: u8, body: &[u8]| {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        header.extend([next, 64]);
        header.extend(from);
        header.extend(to);
        [header, body.to_vec()].concat()
    };
    let fragment = |offset: u16, body: &[u8]| {
        let mut header = vec![6, 0];
        header.extend(offset.to_be_bytes());
        header.extend([0, 0, 0x12, 0x34]);
        packet(44, &[header, body.to_vec()].concat())
    };
    match disguise {
        Disguise::Plain | Disguise::Vlan => vec![packet(6, tcp)],
        // Destination options: one that pads.
        Disguise::Options => vec![packet(60, &[&[6, 0, 1, 4, 0, 0, 0, 0], tcp].concat())],
        Disguise::Fragments => {
            vec![fragment(1, &tcp[..FIRST_FRAGMENT]), fragment(OFFSET, &tcp[FIRST_FRAGMENT..])]
        }
    }
}

/// An ARP answer, or an unsolicited neighbour advertisement, that `claimed` is at `claimant`; to a victim.
pub fn claim(claimed: IpAddr, claimant: Hardware, victim: (IpAddr, Hardware)) -> Vec<u8> {
    let (address, hardware) = victim;
    match (claimed, address) {
        (IpAddr::V4(claimed), IpAddr::V4(address)) => {
            let head = [&hardware[..], &claimant, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
            [&head[..], &claimant, &claimed.octets(), &hardware, &address.octets()].concat()
        }
        (IpAddr::V6(claimed), IpAddr::V6(address)) => {
            let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
            message.extend(claimed.octets());
            message.extend([2, 1]);
            message.extend(claimant);
            let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
            let header = pseudo(claimed.into(), address.into(), 58, length);
            let sum = checksum(&[header, message.clone()].concat());
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut ip = vec![0x60, 0, 0, 0, 0, 32, 58, 255];
            ip.extend(claimed.octets());
            ip.extend(address.octets());
            [&hardware[..], &claimant, &[0x86, 0xdd], &ip, &message].concat()
        }
        _ => Vec::new(),
    }
}

/// A frame to nobody that says to a bridge: this address is behind this port.
pub fn flap(address: Hardware) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 0x99][..], &address, &[0x88, 0xb5], &[0; 46]].concat()
}

fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// The last TCP segment from one end to the other in a trace, without its payload: as the sender would go on.
pub fn last_segment(trace: &Trace, from: SocketAddr, to: SocketAddr) -> Result<Segment<'static>> {
    let ends = |frame: &[u8]| -> Option<Segment<'static>> {
        let (at, length) = match frame.get(12..14)? {
            [0x08, 0x00] => (34, usize::from(u16::from_be_bytes(frame.get(16..18)?.try_into().ok()?)) - 20),
            [0x86, 0xdd] => (54, usize::from(u16::from_be_bytes(frame.get(18..20)?.try_into().ok()?))),
            _ => return None,
        };
        let (addresses, size) = if at == 34 { (26, 4) } else { (22, 16) };
        let ip = |at: usize| -> Option<IpAddr> {
            let bytes = frame.get(at..at + size)?;
            Some(match <[u8; 4]>::try_from(bytes) {
                Ok(v4) => IpAddr::from(v4),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
            })
        };
        let port = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?));
        let source = SocketAddr::new(ip(addresses)?, port(at)?);
        let destination = SocketAddr::new(ip(addresses + size)?, port(at + 2)?);
        let payload = length - usize::from(*frame.get(at + 12)? >> 4) * 4;
        (source == from && destination == to).then_some(Segment {
            from,
            to,
            sequence: word(at + 4)?.wrapping_add(u32::try_from(payload).ok()?),
            acknowledged: word(at + 8)?,
            flags: PSH | ACK,
            payload: &[],
        })
    };
    trace.frames().filter_map(ends).last().context("no segment of the connection was seen")
}
