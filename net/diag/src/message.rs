//! The messages of `sock_diag(7)`: requests as bytes, answers from bytes. Numbers are in the machine's byte
//! order, addresses and ports in the network's.
//!
//! Entry points: [`list`], [`destroy`] and [`answers`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;

use crate::error::Error;
use crate::socket::{State, TcpSocket};

// linux/netlink.h
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;
pub(crate) const ATTRIBUTE: usize = 4;
// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const SK_DIAG_BPF_STORAGE: u16 = 1;
/// Set in the type of an attribute that has attributes in it.
const NLA_F_NESTED: u16 = 1 << 15;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// include/net/tcp_states.h
const TCP_LISTEN: u8 = 10;
/// `struct inet_diag_msg` before its attributes.
const ANSWER: usize = 72;
// struct tcp_info
const UNACKNOWLEDGED: usize = 24;
const BYTES_SENT: usize = 200;
const BYTES_SENT_AGAIN: usize = 208;
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;

/// The state of listening sockets, as a bit.
const LISTEN: u32 = 1 << TCP_LISTEN;

/// States that have a peer and an identity of their own, as bits: all but TIME_WAIT, CLOSE, LISTEN and
/// half-open ones.
const WITH_PEER: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Which sockets are listed. IPv6 sockets may carry IPv4.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

/// One message from the kernel.
#[derive(Debug)]
pub(crate) enum Answer {
    Socket(TcpSocket),
    /// A listening socket's port.
    Listening(u16),
    /// The end of a list, or an acknowledgement.
    Done,
    Failed(io::Error),
    /// Anything else.
    Other,
}

/// A request for all TCP sockets of the family that have a peer. Of each it is said whether one of these maps
/// of sockets' storage has an entry for it.
pub(crate) fn list(sequence: u32, family: Family, maps: &[RawFd]) -> Vec<u8> {
    dump(sequence, family, WITH_PEER, maps)
}

/// A request for all listening TCP sockets of the family.
pub(crate) fn list_listening(sequence: u32, family: Family) -> Vec<u8> {
    dump(sequence, family, LISTEN, &[])
}

fn dump(sequence: u32, family: Family, states: u32, maps: &[RawFd]) -> Vec<u8> {
    let family = match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    let with_info = 1 << (INET_DIAG_INFO - 1);
    let mut body = vec![family, IPPROTO_TCP, with_info, 0];
    body.extend(states.to_ne_bytes());
    body.extend([0; 48]);
    if !maps.is_empty() {
        let inner: Vec<u8> = maps
            .iter()
            .flat_map(|map| attribute_of(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &map.to_ne_bytes()))
            .collect();
        body.extend(attribute_of(INET_DIAG_REQ_SK_BPF_STORAGES | NLA_F_NESTED, &inner));
    }
    framed(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, sequence, &body)
}

/// A request to close one socket. `interface`: the one that the socket is bound to, or 0.
pub(crate) fn destroy(
    sequence: u32,
    local: SocketAddr,
    remote: SocketAddr,
    interface: u32,
    cookie: u64,
) -> Vec<u8> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (local, remote) = (canonical(local), canonical(remote));
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut body = vec![family, IPPROTO_TCP, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(remote.port().to_be_bytes());
    body.extend(address(local.ip()));
    body.extend(address(remote.ip()));
    // The kernel finds a socket that is bound to an interface, or has a link-local peer, by this one only.
    body.extend(interface.to_ne_bytes());
    // The lower half first, whatever the machine's byte order.
    let (low, high) = (cookie & u64::from(u32::MAX), cookie >> 32);
    for half in [low, high] {
        body.extend(u32::try_from(half).unwrap_or_default().to_ne_bytes());
    }
    framed(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, sequence, &body)
}

fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

pub(crate) fn framed(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

fn address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&v4.octets());
            octets
        }
    }
}

/// The answers to request `sequence` in a packet.
pub(crate) fn answers(mut packet: &[u8], sequence: u32) -> Vec<Result<Answer, Error>> {
    let mut answers = Vec::new();
    while !packet.is_empty() {
        let (length, answer) = match split(packet) {
            Ok(message) => (message.length, message.answer(sequence)),
            Err(error) => {
                answers.push(Err(error));
                break;
            }
        };
        answers.extend(answer.transpose());
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    answers
}

pub(crate) struct Message<'a> {
    pub(crate) length: usize,
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

pub(crate) fn split(packet: &[u8]) -> Result<Message<'_>, Error> {
    let length = usize::try_from(u32_at(packet, 0)?).map_err(|_| Error::Malformed("bad message length"))?;
    let body = packet.get(HEADER..length).ok_or(Error::Malformed("message is longer than its packet"))?;
    Ok(Message { length, kind: u16_at(packet, 4)?, sequence: u32_at(packet, 8)?, body })
}

impl Message<'_> {
    fn answer(&self, sequence: u32) -> Result<Option<Answer>, Error> {
        if self.sequence != sequence {
            return Ok(None);
        }
        Ok(Some(match self.kind {
            NLMSG_DONE => Answer::Done,
            NLMSG_ERROR => match u32_at(self.body, 0)?.cast_signed() {
                0 => Answer::Done,
                negated => Answer::Failed(io::Error::from_raw_os_error(negated.wrapping_neg())),
            },
            SOCK_DIAG_BY_FAMILY if self.body.get(1) == Some(&TCP_LISTEN) => {
                Answer::Listening(listening(self.body)?)
            }
            SOCK_DIAG_BY_FAMILY => socket(self.body)?.map_or(Answer::Other, Answer::Socket),
            _ => Answer::Other,
        }))
    }
}

/// None for states without a peer.
fn socket(body: &[u8]) -> Result<Option<TcpSocket>, Error> {
    let [family, state, ..] = *body else { return Err(Error::Malformed("empty answer")) };
    let Some(state) = state_of(state) else { return Ok(None) };
    let attributes = body.get(ANSWER..).unwrap_or_default();
    let info = attribute(attributes, INET_DIAG_INFO)?;
    let (acknowledged, arrived) = match info {
        Some(info) => (u64_at(info, BYTES_ACKED)?, u64_at(info, BYTES_RECEIVED)?),
        None => (0, 0),
    };
    let stored = match attribute(attributes, INET_DIAG_SK_BPF_STORAGES)? {
        Some(storages) => attribute(storages, SK_DIAG_BPF_STORAGE)?.is_some(),
        None => false,
    };
    Ok(Some(TcpSocket {
        local: SocketAddr::new(ip(family, body, 8)?, port(body, 4)?),
        remote: SocketAddr::new(ip(family, body, 24)?, port(body, 6)?),
        cookie: u64::from(u32_at(body, 44)?) | u64::from(u32_at(body, 48)?) << 32,
        interface: u32_at(body, 40)?,
        state,
        acknowledged,
        arrived,
        accepted: info.and_then(|info| is_accepted(state, info)),
        stored,
    }))
}

/// Whether a socket was accepted: the SYN of one that connected counts as an acknowledged byte. Known only
/// while everything sent is acknowledged and no FIN was sent.
fn is_accepted(state: State, info: &[u8]) -> Option<bool> {
    if !matches!(state, State::Established | State::CloseWait) || u32_at(info, UNACKNOWLEDGED).ok()? != 0 {
        return None;
    }
    let sent = u64_at(info, BYTES_SENT).ok()?.checked_sub(u64_at(info, BYTES_SENT_AGAIN).ok()?)?;
    match u64_at(info, BYTES_ACKED).ok()?.checked_sub(sent)? {
        0 => Some(true),
        1 => Some(false),
        _ => None,
    }
}

/// The port of a listening socket.
fn listening(body: &[u8]) -> Result<u16, Error> {
    port(body, 4)
}

/// include/net/tcp_states.h
fn state_of(number: u8) -> Option<State> {
    Some(match number {
        1 => State::Established,
        2 => State::SynSent,
        3 => State::SynReceived,
        4 => State::FinWait1,
        5 => State::FinWait2,
        8 => State::CloseWait,
        9 => State::LastAck,
        11 => State::Closing,
        _ => return None,
    })
}

pub(crate) fn attribute(mut attributes: &[u8], wanted: u16) -> Result<Option<&[u8]>, Error> {
    while attributes.len() >= ATTRIBUTE {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(ATTRIBUTE..length).ok_or(Error::Malformed("bad attribute length"))?;
        if u16_at(attributes, 2)? & !NLA_F_NESTED == wanted {
            return Ok(Some(value));
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

fn ip(family: u8, bytes: &[u8], at: usize) -> Result<IpAddr, Error> {
    Ok(match family {
        AF_INET => Ipv4Addr::from(array::<4>(bytes, at)?).into(),
        _ => Ipv6Addr::from(array::<16>(bytes, at)?).to_canonical(),
    })
}

fn port(bytes: &[u8], at: usize) -> Result<u16, Error> {
    array(bytes, at).map(u16::from_be_bytes)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Error> {
    array(bytes, at).map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Error> {
    array(bytes, at).map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Error> {
    array(bytes, at).map(u64::from_ne_bytes)
}

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Error> {
    let found = bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
    found.ok_or(Error::Malformed("answer is too short"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_packets_are_errors() {
        let header = |length: u32, kind: u16| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(7_u32.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes
        };
        let rows = [
            ("half a header", vec![1, 2, 3]),
            ("a length of nothing", header(0, NLMSG_DONE)),
            ("longer than the packet", header(400, NLMSG_DONE)),
            ("an error without a number", header(16, NLMSG_ERROR)),
            ("a socket without its fields", header(16, SOCK_DIAG_BY_FAMILY)),
        ];
        for (name, packet) in rows {
            let answers = answers(&packet, 7);
            assert!(matches!(answers[..], [Err(Error::Malformed(_))]), "{name}: {answers:?}");
        }
    }

    #[test]
    fn replies_to_other_requests_are_ignored() {
        let packet = framed(NLMSG_DONE, 0, 8, &[0; 4]);
        assert!(answers(&packet, 7).is_empty());
        assert!(matches!(answers(&packet, 8)[..], [Ok(Answer::Done)]));
    }
}
