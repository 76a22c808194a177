//! Links of a network namespace over rtnetlink: [`Links`] reads them, [`LinkEvents`] follows them.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{NetlinkAddr, bind};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::Error;
use crate::link::{self, Answer, Change, Interface};

const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;
// linux/rtnetlink.h: groups of messages, as bits
const RTMGRP_LINK: u32 = 1;
const RTMGRP_NEIGH: u32 = 4;
const ENODEV: i32 = 19;
/// The kernel fills what the reader offers, up to 32 KiB.
const BUFFER: usize = 32 * 1024;
/// The kernel answers within the call; waiting longer means that an answer was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks about one namespace's links.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
    sequence: u32,
}

impl Links {
    /// For the namespace that the calling thread is in; it stays that one's.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: open(ANSWER_TIMEOUT).map_err(Error::Open)?, sequence: 0 })
    }

    /// Every interface.
    pub fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        let mut found = Vec::new();
        self.ask("list interfaces", link::interfaces, |answer| {
            if let Answer::Interface(interface) = answer {
                found.push(interface);
            }
        })?;
        Ok(found)
    }

    /// One interface; none if there is no such.
    pub fn interface(&mut self, index: u32) -> Result<Option<Interface>, Error> {
        let mut found = None;
        let asked = self.ask(
            "read interface",
            |sequence| link::interface(sequence, index),
            |answer| {
                if let Answer::Interface(interface) = answer {
                    found = Some(interface);
                }
            },
        );
        match asked {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(ENODEV) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// The number by which this namespace knows another one: what [`Interface::peer_namespace`] names.
    pub fn namespace_number(&mut self, other: BorrowedFd<'_>) -> Result<Option<u32>, Error> {
        let mut found = None;
        self.ask(
            "number namespace",
            |sequence| link::namespace(sequence, other.as_raw_fd()),
            |answer| {
                if let Answer::Namespace(number) = answer {
                    found = number;
                }
            },
        )?;
        Ok(found)
    }

    /// The kinds of traffic-control filters on an interface's ingress and egress (`clsact`, `ingress`).
    pub fn filters(&mut self, index: u32) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        for parent in link::FILTER_PARENTS {
            let asked = self.ask(
                "list filters",
                |sequence| link::filters(sequence, index, parent),
                |answer| {
                    if let Answer::Filter(kind) = answer {
                        found.push(kind);
                    }
                },
            );
            match asked {
                // There is no such queueing discipline, so no filter.
                Err(Error::Refused { .. }) => {}
                other => other?,
            }
        }
        found.dedup();
        Ok(found)
    }

    /// Sends a request and passes on its answers, to the last.
    fn ask(
        &mut self,
        operation: &'static str,
        make: impl FnOnce(u32) -> Vec<u8>,
        mut each: impl FnMut(Answer),
    ) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let transfer = |source| Error::Transfer { operation, source };
        self.socket.write_all(&make(self.sequence)).map_err(transfer)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = receive(&mut self.socket, &mut buffer).map_err(transfer)?;
            for answer in link::answers(&buffer[..length], self.sequence) {
                match answer? {
                    Answer::Done => return Ok(()),
                    Answer::Failed(source) => return Err(Error::Refused { operation, source }),
                    answer => each(answer),
                }
            }
        }
    }
}

/// Changes of a namespace's links, and of what its bridges learn about who is behind which port.
#[derive(Debug)]
pub struct LinkEvents {
    socket: Socket,
}

impl LinkEvents {
    /// From now on, in the namespace that the calling thread is in. `patience`: how long [`Self::wait`]
    /// waits.
    pub fn open(patience: Duration) -> Result<Self, Error> {
        let make = || {
            let socket = open(patience)?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK | RTMGRP_NEIGH))?;
            Ok(socket)
        };
        Ok(Self { socket: make().map_err(Error::Open)? })
    }

    /// Waits for changes; none within the patience is an empty list. An error of kind `Transfer` may mean
    /// that changes were lost.
    pub fn wait(&mut self) -> Result<Vec<Change>, Error> {
        let mut buffer = vec![0; BUFFER];
        match receive(&mut self.socket, &mut buffer) {
            Ok(length) => link::changes(&buffer[..length]).into_iter().collect(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(source) => Err(Error::Transfer { operation: "follow links", source }),
        }
    }
}

fn open(patience: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_ROUTE)))?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

fn receive(socket: &mut Socket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
