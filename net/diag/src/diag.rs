//! Requests to the kernel over netlink: [`Diag`].

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
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
        let mut sockets = Vec::new();
        for family in [Family::V4, Family::V6] {
            self.list(family, &mut sockets)?;
        }
        Ok(sockets)
    }

    /// Closes a socket as if its connection had been aborted: the process that holds it gets an error, its
    /// peer a reset. False if there is no socket of this cookie (any more).
    pub fn destroy(&mut self, local: SocketAddr, remote: SocketAddr, cookie: u64) -> Result<bool, Error> {
        const OPERATION: &str = "close socket";
        self.send(OPERATION, |sequence| message::destroy(sequence, local, remote, cookie))?;
        let mut buffer = [0; SMALL_BUFFER];
        loop {
            for answer in self.receive(OPERATION, &mut buffer)? {
                match answer? {
                    Answer::Done => return Ok(true),
                    Answer::Failed(error) if is_gone(&error) => return Ok(false),
                    Answer::Failed(source) => return Err(Error::Refused { operation: OPERATION, source }),
                    Answer::Socket(_) | Answer::Other => {}
                }
            }
        }
    }

    fn list(&mut self, family: Family, sockets: &mut Vec<TcpSocket>) -> Result<(), Error> {
        const OPERATION: &str = "list sockets";
        self.send(OPERATION, |sequence| message::list(sequence, family))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            for answer in self.receive(OPERATION, &mut buffer)? {
                match answer? {
                    Answer::Socket(socket) => sockets.push(socket),
                    Answer::Done => return Ok(()),
                    // A kernel without IPv6 has no sockets of it.
                    Answer::Failed(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Answer::Failed(source) => return Err(Error::Refused { operation: OPERATION, source }),
                    Answer::Other => {}
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
