//! What travels between the nodes: every frame that enters the underlay, read from a packet socket in the
//! test's own process.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::netns::Netns;
use crate::sys;

/// A capture is searched in memory: more than this is a mistake of the test.
const LIMIT: usize = 1 << 30;
/// What the kernel may hold for us while the machine is busy with the daemons.
const BUFFER: usize = 256 << 20;
/// Packet type of frames that the underlay itself sends.
const OUTGOING: u8 = 4;

/// A capture that runs until it is stopped.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Trace>>>,
}

impl Capture {
    /// Begins to listen to all that passes the interfaces of a namespace.
    pub fn start(netns: &Netns) -> Result<Self> {
        let socket = netns.run(open)?.context("failed to open a packet socket")?;
        let stop = Arc::new(AtomicBool::new(false));
        let ask = Arc::clone(&stop);
        let thread = std::thread::spawn(move || read(&socket, &ask));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the capture: everything that entered the underlay since its start.
    pub fn stop(mut self) -> Result<Trace> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("a capture stops once")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn open() -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
    Ok(socket)
}

fn read(socket: &OwnedFd, stop: &AtomicBool) -> Result<Trace> {
    let mut trace = Trace::default();
    let mut size = 0;
    let mut buffer = vec![0; 256 << 10];
    loop {
        // What was sent before the stop was asked for is in the queue already: read until it is empty.
        let stopping = stop.load(Ordering::Acquire);
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, from)) => {
                // Every frame passes twice, in by one port and out by another: take it once.
                if from.is_some_and(|from| from.pkttype() == OUTGOING) {
                    continue;
                }
                size += length;
                ensure!(size < LIMIT, "more than {LIMIT} bytes between the nodes: capture less");
                trace.frames.push(buffer[..length].to_vec());
            }
            Err(error) => match std::io::Error::from(error).kind() {
                ErrorKind::WouldBlock if stopping => break,
                ErrorKind::WouldBlock | ErrorKind::Interrupted => {}
                _ => return Err(error).context("failed to read from the packet socket"),
            },
        }
    }
    let lost = sys::packets_lost(socket.as_fd())?;
    ensure!(lost == 0, "{lost} frames were lost to the capture: it proves nothing");
    Ok(trace)
}

/// What a capture saw, in order.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    frames: Vec<Vec<u8>>,
}

/// One IP packet of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub protocol: Protocol,
    /// Ports are 0 where the protocol has none.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Hops left: shows how many routers it has passed.
    pub ttl: u8,
    pub payload: &'a [u8],
}

/// What an IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Other(u8),
}

impl Trace {
    /// The frames as they were, in order.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().map(Vec::as_slice)
    }

    /// How many frames hold these bytes.
    pub fn holding(&self, marker: &[u8]) -> usize {
        self.frames.iter().filter(|frame| frame.windows(marker.len()).any(|window| window == marker)).count()
    }

    /// The IP packets.
    pub fn packets(&self) -> impl Iterator<Item = Packet<'_>> {
        self.frames.iter().filter_map(|frame| packet(frame))
    }

    /// The TCP packets to or from a port.
    pub fn tcp_port(&self, port: u16) -> usize {
        let at = |packet: &Packet<'_>| packet.source.port() == port || packet.destination.port() == port;
        self.packets().filter(|packet| packet.protocol == Protocol::Tcp && at(packet)).count()
    }

    /// All payload bytes of TCP and UDP.
    pub fn payload_bytes(&self) -> usize {
        self.packets().map(|packet| packet.payload.len()).sum()
    }
}

/// An Ethernet frame's IP packet; none for other protocols and truncated frames.
fn packet(frame: &[u8]) -> Option<Packet<'_>> {
    let ip = frame.get(14..)?;
    let (protocol, ttl, source, destination, rest): (u8, u8, IpAddr, IpAddr, &[u8]) =
        match frame.get(12..14)? {
            [0x08, 0x00] => {
                let header = usize::from(ip.first()? & 0x0f) * 4;
                let length = usize::from(u16::from_be_bytes(ip.get(2..4)?.try_into().ok()?));
                // A packet that segmentation offload left whole may say 0.
                let end = if length == 0 { ip.len() } else { length.min(ip.len()) };
                let address = |at: usize| ip.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
                (*ip.get(9)?, *ip.get(8)?, address(12)?.into(), address(16)?.into(), ip.get(header..end)?)
            }
            [0x86, 0xdd] => {
                let length = usize::from(u16::from_be_bytes(ip.get(4..6)?.try_into().ok()?));
                let end = if length == 0 { ip.len() } else { (40 + length).min(ip.len()) };
                let address = |at: usize| ip.get(at..at + 16).and_then(|b| <[u8; 16]>::try_from(b).ok());
                (*ip.get(6)?, *ip.get(7)?, address(8)?.into(), address(24)?.into(), ip.get(40..end)?)
            }
            _ => return None,
        };
    let (protocol, header) = match protocol {
        6 => (Protocol::Tcp, usize::from(rest.get(12)? >> 4) * 4),
        17 => (Protocol::Udp, 8),
        other => (Protocol::Other(other), 0),
    };
    let port = |at: usize| match protocol {
        Protocol::Other(_) => Some(0),
        Protocol::Tcp | Protocol::Udp => Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?)),
    };
    Some(Packet {
        protocol,
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        ttl,
        payload: rest.get(header..)?,
    })
}
