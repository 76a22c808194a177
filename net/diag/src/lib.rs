//! TCP sockets of a network namespace, seen and closed from outside the processes that hold them:
//! `NETLINK_SOCK_DIAG` of Linux.
//!
//! Ways in: [`Diag::open`] in the namespace in question, then [`Diag::sockets`] and [`Diag::destroy`].

mod message;

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use message::{Answer, Family};

const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
/// The kernel fills what the reader offers, up to 32 KiB: fewer calls for long lists. Not kept between
/// questions.
const BUFFER: usize = 32 * 1024;
/// For the answer to a question with one answer.
const SMALL_BUFFER: usize = 1024;
/// The kernel answers within the call; waiting longer means that an answer was lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asking the kernel about sockets failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The netlink socket could not be made.
    #[error("opening a netlink socket")]
    Open(#[source] io::Error),
    /// A question could not be sent, or its answer not be read.
    #[error("{operation} over netlink")]
    Transfer { operation: &'static str, source: io::Error },
    /// The kernel refused.
    #[error("the kernel refused: {operation}")]
    Refused { operation: &'static str, source: io::Error },
    /// An answer is not what the kernel's interface says.
    #[error("an answer that cannot be read: {0}")]
    Malformed(&'static str),
}

/// The states of a TCP socket that has a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    CloseWait,
    LastAck,
    Closing,
}

/// A TCP socket that has a peer, as it was a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// In canonical form: IPv4 on an IPv6 socket is IPv4.
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Its number, never given to another socket.
    pub cookie: u64,
    pub state: State,
    /// As the kernel counts: sequence numbers that the peer acknowledged. The FIN is one, and where the
    /// socket was the connecting end so is the SYN.
    pub acknowledged: u64,
    /// As the kernel counts: sequence numbers that came in order. The peer's FIN is one; its SYN is not.
    pub arrived: u64,
}

impl TcpSocket {
    /// The bytes that the accepting end sent and its peer has.
    pub fn sent_by_server(&self) -> u64 {
        let own_end = matches!(self.state, State::FinWait2);
        self.acknowledged.saturating_sub(own_end.into())
    }

    /// The bytes that came from the peer, read or not.
    pub fn received(&self) -> u64 {
        let peers_end = matches!(self.state, State::CloseWait | State::LastAck | State::Closing);
        self.arrived.saturating_sub(peers_end.into())
    }
}

/// A way to ask about one namespace's sockets.
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
            socket.set_read_timeout(Some(PATIENCE))?;
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
    /// peer a reset. The cookie says which one is meant; false if it is not there (any more).
    pub fn destroy(&mut self, local: SocketAddr, remote: SocketAddr, cookie: u64) -> Result<bool, Error> {
        const OPERATION: &str = "closing a socket";
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
        const OPERATION: &str = "listing sockets";
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

    /// One packet's answers to the last question. Those to earlier ones, given up in an error, are left out.
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
