//! One connection of a source to the daemon that listens at a path: hello, then messages and their answers in
//! turn ([`Connection`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::error::Error;
use crate::message::{Answer, Message, PROTOCOL_VERSION, SourceName};
use crate::packet;

/// How often the connection is checked, and tried again if the daemon is gone.
pub(crate) const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Identifies a socket file: another daemon's is another file. One that is bound keeps its number while its
/// daemon lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SocketFile {
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self { device: found.dev(), inode: found.ino() })
    }
}

/// One connection that has said hello.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// What lay at the path just before connecting. If it was replaced in between, the client connects once
    /// more than needed.
    file: Option<SocketFile>,
}

impl Connection {
    /// Tries until the deadline. A refusal is final.
    pub(crate) fn retry(path: &Path, source: &SourceName, deadline: Instant) -> Result<Self, Error> {
        loop {
            match Self::open(path, source, deadline) {
                Err(Error::Connect { .. } | Error::Io { .. })
                    if Instant::now() + WATCH_INTERVAL < deadline =>
                {
                    std::thread::sleep(WATCH_INTERVAL);
                }
                other => return other,
            }
        }
    }

    pub(crate) fn open(path: &Path, source: &SourceName, deadline: Instant) -> Result<Self, Error> {
        let failed = |e: nix::Error| Error::Connect { path: path.to_owned(), source: e.into() };
        let file = SocketFile::at(path);
        let descriptor =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        connect(descriptor.as_raw_fd(), &address).map_err(failed)?;
        let mut connection = Self { socket: descriptor, file };
        let hello = Message::Hello { version: PROTOCOL_VERSION, source: source.clone() };
        connection.exchange(&hello, None, deadline)?;
        Ok(connection)
    }

    /// Sends one message and waits for its answer. After an `Io` error the connection is of no more use.
    pub(crate) fn exchange(
        &mut self,
        message: &Message,
        descriptor: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let io = |operation| move |source| Error::Io { operation, source };
        let bytes = serde_json::to_vec(message).map_err(|e| Error::Message(e.to_string()))?;
        packet::send(self.socket.as_fd(), &bytes, descriptor).map_err(io("send message"))?;
        self.wait(deadline).map_err(io("wait for answer"))?;
        let packet = packet::receive(self.socket.as_fd())
            .map_err(io("receive answer"))?
            .ok_or_else(|| io("receive answer")(io::ErrorKind::UnexpectedEof.into()))?;
        match serde_json::from_slice(&packet.bytes).map_err(|e| Error::Message(e.to_string()))? {
            Answer::Ack {} => Ok(()),
            Answer::Refused { reason } => Err(Error::Refused { request: describe(message), reason }),
        }
    }

    fn wait(&self, deadline: Instant) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
            let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut descriptors, timeout) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether another daemon listens at the path now.
    pub(crate) fn replaced(&self, path: &Path) -> bool {
        SocketFile::at(path).is_some_and(|file| Some(file) != self.file)
    }

    /// Whether the daemon has gone. Nothing is ever sent unasked, so anything readable is the end.
    pub(crate) fn closed(&self) -> bool {
        let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        !matches!(poll(&mut descriptors, PollTimeout::ZERO), Ok(0) | Err(nix::Error::EINTR))
    }
}

fn describe(message: &Message) -> String {
    match message {
        Message::Hello { source, .. } => format!("register source {source}"),
        Message::Add(pod) => format!("enrol {}", pod.uid),
        Message::Keep { uid } => format!("keep {uid}"),
        Message::Delete { uid } => format!("release {uid}"),
        Message::SnapshotSent => "complete the snapshot".to_owned(),
        Message::NodeNetwork {} => "take the node's network namespace".to_owned(),
        Message::Ending => "end a pod".to_owned(),
    }
}
