//! Requests to the kernel over netlink: [`Diag`].

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::Error;
use crate::message::{self, Answer, Family};
use crate::socket::TcpSocket;

const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
/// The kernel fills what the reader offers, up to 32 KiB: fewer calls for long lists. Not kept between
/// requests.
const BUFFER: usize = 32 * 1024;
/// For the answer to a request with one answer.
const SMALL_BUFFER: usize = 1024;
/// The kernel answers within the call; waiting longer means that an answer was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks about one namespace's sockets.
#[derive(Debug)]
pub struct Diag {
    socket: Socket,
    sequence: u32,
}

impl Diag {
    /// For the namespace that the calling thread is in; it stays that one's.
    pub fn open() -> Result<Self, Error> {
        let make = || {
            let protocol = Protocol::from(NETLINK_SOCK_DIAG);
            let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(protocol))?;
            socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(socket)
        };
        let socket = make().map_err(Error::Open)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Every TCP socket that has a peer and is held by a process, or was and still has something to send.
    pub fn sockets(&mut self) -> Result<Vec<TcpSocket>, Error> {
        self.sockets_stored_in(&[])
    }

    /// The same; of each socket it is said whether one of these maps of sockets' storage has an entry for it.
    pub fn sockets_stored_in(&mut self, maps: &[BorrowedFd<'_>]) -> Result<Vec<TcpSocket>, Error> {
        let maps: Vec<RawFd> = maps.iter().map(AsRawFd::as_raw_fd).collect();
        let mut sockets = Vec::new();
        for family in [Family::V4, Family::V6] {
            self.list(
                |sequence| message::list(sequence, family, &maps),
                |answer| {
                    if let Answer::Socket(socket) = answer {
                        sockets.push(socket);
                    }
                },
            )?;
        }
        Ok(sockets)
    }

    /// The ports on which TCP sockets listen.
    pub fn listening(&mut self) -> Result<BTreeSet<u16>, Error> {
        let mut ports = BTreeSet::new();
        for family in [Family::V4, Family::V6] {
            self.list(
                |sequence| message::list_listening(sequence, family),
                |answer| {
                    if let Answer::Listening(port) = answer {
                        ports.insert(port);
                    }
                },
            )?;
        }
        Ok(ports)
    }

    /// Closes a socket as if its connection had been aborted: the process that holds it gets an error, its
    /// peer a reset. False if there is no socket of this cookie (any more).
    pub fn destroy(&mut self, local: SocketAddr, remote: SocketAddr, cookie: u64) -> Result<bool, Error> {
        if self.destroy_on(local, remote, 0, cookie)? {
            return Ok(true);
        }
        // A socket that is bound to an interface, or whose peer is link-local, is found by that interface
        // only.
        let bound =
            self.sockets()?.into_iter().find(|socket| socket.cookie == cookie && socket.interface != 0);
        match bound {
            Some(socket) => self.destroy_on(socket.local, socket.remote, socket.interface, cookie),
            None => Ok(false),
        }
    }

    fn destroy_on(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        interface: u32,
        cookie: u64,
    ) -> Result<bool, Error> {
        const OPERATION: &str = "close socket";
        self.send(OPERATION, |sequence| message::destroy(sequence, local, remote, interface, cookie))?;
        let mut buffer = [0; SMALL_BUFFER];
        loop {
            for answer in self.receive(OPERATION, &mut buffer)? {
                match answer? {
                    Answer::Done => return Ok(true),
                    Answer::Failed(error) if is_gone(&error) => return Ok(false),
                    Answer::Failed(source) => return Err(Error::Refused { operation: OPERATION, source }),
                    Answer::Socket(_) | Answer::Listening(_) | Answer::Other => {}
                }
            }
        }
    }

    fn list(
        &mut self,
        request: impl FnOnce(u32) -> Vec<u8>,
        mut each: impl FnMut(Answer),
    ) -> Result<(), Error> {
        const OPERATION: &str = "list sockets";
        self.send(OPERATION, request)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            for answer in self.receive(OPERATION, &mut buffer)? {
                match answer? {
                    Answer::Done => return Ok(()),
                    // A kernel without IPv6 has no sockets of it.
                    Answer::Failed(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Answer::Failed(source) => return Err(Error::Refused { operation: OPERATION, source }),
                    other => each(other),
                }
            }
        }
    }

    fn send(&mut self, operation: &'static str, make: impl FnOnce(u32) -> Vec<u8>) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = make(self.sequence);
        self.socket.write_all(&message).map_err(|source| Error::Transfer { operation, source })
    }

    /// One packet's answers to the last request. Those to earlier ones, given up in an error, are left out.
    fn receive(
        &mut self,
        operation: &'static str,
        buffer: &mut [u8],
    ) -> Result<Vec<Result<Answer, Error>>, Error> {
        let length = loop {
            match self.socket.read(buffer) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Transfer { operation, source }),
            }
        };
        Ok(message::answers(&buffer[..length], self.sequence))
    }
}

/// No such socket, or another one (by its cookie) has its addresses now, or it is closed already.
fn is_gone(error: &io::Error) -> bool {
    const ESTALE: i32 = 116;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ESTALE)
}
