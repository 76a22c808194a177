//! The messages of `rtnetlink(7)` about links: requests as bytes, answers from bytes.
//!
//! Entry points: [`interfaces`], [`interface`], [`namespace`], [`filters`], then [`answers`]; and
//! [`changes`].

use std::io;

use crate::error::Error;
use crate::message::{
    ATTRIBUTE, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, attribute, framed, split,
    u32_at,
};

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
/// `struct ifinfomsg`, `struct ndmsg`, `struct tcmsg` and `struct rtgenmsg` (padded) before attributes.
const IFINFOMSG: usize = 16;
const NDMSG: usize = 12;
const TCMSG: usize = 20;
const RTGENMSG: usize = 4;
// linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
// linux/net_namespace.h
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// linux/neighbour.h
const NDA_LLADDR: u16 = 2;
/// linux/pkt_sched.h
const TCA_KIND: u16 = 1;
const AF_BRIDGE: u8 = 7;
// linux/if.h
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;

/// Where filters hang: ingress and egress of `clsact`; `ingress` has the first only.
pub(crate) const FILTER_PARENTS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Its kind (`veth`, `bridge`, …); empty for hardware.
    pub kind: String,
    /// Its Ethernet address, if it has one.
    pub address: Option<[u8; 6]>,
    /// The index of the interface that it is linked to; of a veth, its other end.
    pub peer: Option<u32>,
    /// The number of the namespace that the peer is in, if it is another one.
    pub peer_namespace: Option<u32>,
    /// The index of the bridge (or the like) that it is a port of.
    pub master: Option<u32>,
    /// Whether an XDP program is attached.
    pub xdp: bool,
}

/// One message from the kernel.
#[derive(Debug)]
pub(crate) enum Answer {
    Interface(Interface),
    Namespace(Option<u32>),
    /// The kind of a filter.
    Filter(String),
    /// The end of a list, or an acknowledgement.
    Done,
    Failed(io::Error),
}

/// A change of a namespace's links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The interface is new, changed or gone.
    Interface(u32),
    /// A bridge has learnt that an Ethernet address is behind this port.
    Learnt {
        /// The port's index.
        port: u32,
        /// The address.
        address: [u8; 6],
    },
}

/// A request for all interfaces.
pub(crate) fn interfaces(sequence: u32) -> Vec<u8> {
    framed(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, sequence, &[0; IFINFOMSG])
}

/// A request for one interface.
pub(crate) fn interface(sequence: u32, index: u32) -> Vec<u8> {
    let mut body = [0; IFINFOMSG];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    framed(RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, sequence, &body)
}

/// A request for the number of the namespace that a descriptor of this process refers to.
pub(crate) fn namespace(sequence: u32, descriptor: i32) -> Vec<u8> {
    let mut body = vec![0; RTGENMSG];
    body.extend(8_u16.to_ne_bytes());
    body.extend(NETNSA_FD.to_ne_bytes());
    body.extend(descriptor.to_ne_bytes());
    framed(RTM_GETNSID, NLM_F_REQUEST | NLM_F_ACK, sequence, &body)
}

/// A request for the filters of an interface at a parent.
pub(crate) fn filters(sequence: u32, index: u32, parent: u32) -> Vec<u8> {
    let mut body = [0; TCMSG];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    framed(RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, sequence, &body)
}

/// The answers to request `sequence` in a packet.
pub(crate) fn answers(packet: &[u8], sequence: u32) -> Vec<Result<Answer, Error>> {
    each(packet, |kind, of, body| {
        if of != sequence {
            return Ok(None);
        }
        Ok(match kind {
            NLMSG_DONE => Some(Answer::Done),
            NLMSG_ERROR => Some(match u32_at(body, 0)?.cast_signed() {
                0 => Answer::Done,
                negated => Answer::Failed(io::Error::from_raw_os_error(negated.wrapping_neg())),
            }),
            RTM_NEWLINK => Some(Answer::Interface(read_interface(body)?)),
            RTM_NEWNSID => Some(Answer::Namespace(namespace_number(body)?)),
            RTM_NEWTFILTER => {
                let kind = attribute(body.get(TCMSG..).unwrap_or_default(), TCA_KIND)?;
                Some(Answer::Filter(text(kind.unwrap_or_default())))
            }
            _ => None,
        })
    })
}

/// The changes in a packet.
pub(crate) fn changes(packet: &[u8]) -> Vec<Result<Change, Error>> {
    each(packet, |kind, _, body| {
        Ok(match kind {
            RTM_NEWLINK | RTM_DELLINK => Some(Change::Interface(u32_at(body, 4)?)),
            RTM_NEWNEIGH if body.first() == Some(&AF_BRIDGE) => {
                let learnt = attribute(body.get(NDMSG..).unwrap_or_default(), NDA_LLADDR)?;
                let port = u32_at(body, 4)?;
                learnt.and_then(ethernet).map(|address| Change::Learnt { port, address })
            }
            _ => None,
        })
    })
}

/// What each message of a packet (by kind, sequence and body) is read as.
fn each<T>(
    mut packet: &[u8],
    mut read: impl FnMut(u16, u32, &[u8]) -> Result<Option<T>, Error>,
) -> Vec<Result<T, Error>> {
    let mut all = Vec::new();
    while !packet.is_empty() {
        match split(packet) {
            Ok(message) => {
                all.extend(read(message.kind, message.sequence, message.body).transpose());
                packet = packet.get(message.length.next_multiple_of(ATTRIBUTE)..).unwrap_or_default();
            }
            Err(error) => {
                all.push(Err(error));
                break;
            }
        }
    }
    all
}

fn read_interface(body: &[u8]) -> Result<Interface, Error> {
    let flags = u32_at(body, 8)?;
    let attributes = body.get(IFINFOMSG..).unwrap_or_default();
    let value = |kind| attribute(attributes, kind);
    let number = |kind| value(kind)?.map(|value| u32_at(value, 0)).transpose();
    let info = value(IFLA_LINKINFO)?.unwrap_or_default();
    let xdp = attribute(value(IFLA_XDP)?.unwrap_or_default(), IFLA_XDP_ATTACHED)?;
    Ok(Interface {
        index: u32_at(body, 4)?,
        name: text(value(IFLA_IFNAME)?.unwrap_or_default()),
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        kind: text(attribute(info, IFLA_INFO_KIND)?.unwrap_or_default()),
        address: value(IFLA_ADDRESS)?.and_then(ethernet),
        peer: number(IFLA_LINK)?,
        peer_namespace: number(IFLA_LINK_NETNSID)?,
        master: number(IFLA_MASTER)?,
        xdp: xdp.is_some_and(|attached| attached.first().is_some_and(|mode| *mode != 0)),
    })
}

/// None: the namespace has no number here.
fn namespace_number(body: &[u8]) -> Result<Option<u32>, Error> {
    let number = attribute(body.get(RTGENMSG..).unwrap_or_default(), NETNSA_NSID)?;
    let number = number.map(|value| u32_at(value, 0)).transpose()?;
    Ok(number.filter(|number| number.cast_signed() >= 0))
}

fn ethernet(value: &[u8]) -> Option<[u8; 6]> {
    value.try_into().ok()
}

/// A text that ends with a zero byte.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}
