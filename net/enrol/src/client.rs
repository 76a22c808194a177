//! A source's side: blocking calls, and a thread that keeps the daemon informed across its restarts.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::Error;
use crate::message::{Answer, Message, PROTOCOL_VERSION, Pod, SourceName};
use crate::packet;

/// How often the thread looks whether the daemon is still there, and tries again if not.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// A source's connection to the daemon.
///
/// Every call blocks until the daemon has answered, or the timeout is over. What was added is remembered, with a copy
/// of the descriptor: when the daemon restarts, a thread connects again and says it all anew. Dropping the client
/// closes the connection and releases nothing.
#[derive(Debug)]
pub struct Client {
    commands: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
    timeout: Duration,
}

#[derive(Debug)]
struct Command {
    message: Message,
    descriptor: Option<OwnedFd>,
    deadline: Instant,
    reply: SyncSender<Result<(), Error>>,
}

impl Client {
    /// Connects, trying until the timeout is over; the same timeout holds for every later call.
    pub fn connect(path: impl Into<PathBuf>, source: SourceName, timeout: Duration) -> Result<Self, Error> {
        let path = path.into();
        let deadline = Instant::now() + timeout;
        let connection = Connection::retry(&path, &source, deadline)?;
        let (commands, incoming) = sync_channel(0);
        let mut keeper = Keeper {
            path,
            source,
            timeout,
            connection: Some(connection),
            pods: BTreeMap::new(),
            snapshot_sent: false,
            told: true,
        };
        let thread = std::thread::Builder::new()
            .name("enrol".to_owned())
            .spawn(move || keeper.run(&incoming))
            .map_err(|source| Error::Io { operation: "starting the client's thread", source })?;
        Ok(Self { commands: Some(commands), thread: Some(thread), timeout })
    }

    /// Enrols a workload; returns when it is ready: its listeners up, its programs attached.
    pub fn add(&self, pod: &Pod, namespace: BorrowedFd<'_>) -> Result<(), Error> {
        let descriptor = namespace
            .try_clone_to_owned()
            .map_err(|source| Error::Io { operation: "copying a namespace's descriptor", source })?;
        self.call(Message::Add(pod.clone()), Some(descriptor))
    }

    /// Says that a workload enrolled earlier (also by a predecessor of this process) stays.
    pub fn keep(&self, uid: &str) -> Result<(), Error> {
        self.call(Message::Keep { uid: uid.to_owned() }, None)
    }

    /// Releases a workload.
    pub fn delete(&self, uid: &str) -> Result<(), Error> {
        self.call(Message::Delete { uid: uid.to_owned() }, None)
    }

    /// Says that all there is has been added or kept: the daemon releases the rest of this source's.
    pub fn snapshot_sent(&self) -> Result<(), Error> {
        self.call(Message::SnapshotSent, None)
    }

    fn call(&self, message: Message, descriptor: Option<OwnedFd>) -> Result<(), Error> {
        let gone = || Error::Io {
            operation: "reaching the client's thread",
            source: io::ErrorKind::BrokenPipe.into(),
        };
        let (reply, answer) = sync_channel(1);
        let deadline = Instant::now() + self.timeout;
        let command = Command { message, descriptor, deadline, reply };
        self.commands.as_ref().ok_or_else(gone)?.send(command).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.commands.take();
        if let Some(thread) = self.thread.take() {
            // It ends because the channel has closed; a panic in it was already reported to its callers.
            let _ = thread.join();
        }
    }
}

/// What the thread holds: what has been enrolled, and whether the present daemon knows.
#[derive(Debug)]
struct Keeper {
    path: PathBuf,
    source: SourceName,
    timeout: Duration,
    connection: Option<Connection>,
    pods: BTreeMap<String, (Pod, OwnedFd)>,
    snapshot_sent: bool,
    /// The daemon at the other end has been told everything.
    told: bool,
}

impl Keeper {
    fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            match commands.recv_timeout(WATCH_INTERVAL) {
                Ok(command) => {
                    let result = self.execute(&command);
                    if result.is_ok() {
                        self.remember(command.message, command.descriptor);
                    }
                    // The caller may have given up; nothing to do about it.
                    let _ = command.reply.send(result);
                }
                Err(RecvTimeoutError::Timeout) => self.watch(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn remember(&mut self, message: Message, descriptor: Option<OwnedFd>) {
        match (message, descriptor) {
            (Message::Add(pod), Some(descriptor)) => {
                self.pods.insert(pod.uid.clone(), (pod, descriptor));
            }
            (Message::Delete { uid }, _) => {
                self.pods.remove(&uid);
            }
            (Message::SnapshotSent, _) => self.snapshot_sent = true,
            _ => {}
        }
    }

    /// Carries a caller's message, over a new connection if the old one is gone.
    fn execute(&mut self, command: &Command) -> Result<(), Error> {
        loop {
            let connection = if let Some(connection) = &mut self.connection {
                connection
            } else {
                let fresh = Connection::retry(&self.path, &self.source, command.deadline)?;
                self.told = false;
                self.connection.insert(fresh)
            };
            let descriptor = command.descriptor.as_ref().map(AsFd::as_fd);
            match connection.exchange(&command.message, descriptor, command.deadline) {
                // The daemon went away in between: once more, with the next one.
                Err(Error::Io { .. }) if Instant::now() < command.deadline => self.connection = None,
                Err(error @ Error::Io { .. }) => {
                    self.connection = None;
                    return Err(error);
                }
                other => return other,
            }
        }
    }

    /// Connects again after a restart of the daemon, and tells the new one everything.
    fn watch(&mut self) {
        if self.connection.as_ref().is_some_and(Connection::closed) {
            self.connection = None;
        }
        if self.connection.is_none() {
            let Ok(fresh) = Connection::open(&self.path, &self.source, Instant::now() + self.timeout) else {
                return;
            };
            self.connection = Some(fresh);
            self.told = false;
        }
        if !self.told {
            match self.tell() {
                Ok(()) => self.told = true,
                Err(error @ Error::Refused { .. }) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "enrolling again");
                }
                Err(_) => self.connection = None,
            }
        }
    }

    fn tell(&mut self) -> Result<(), Error> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        // One that cannot be enrolled must not keep the others out; without it the snapshot is not complete.
        let mut refused = None;
        for (pod, descriptor) in self.pods.values() {
            let deadline = Instant::now() + self.timeout;
            match connection.exchange(&Message::Add(pod.clone()), Some(descriptor.as_fd()), deadline) {
                Err(error @ Error::Refused { .. }) => refused = Some(error),
                other => other?,
            }
        }
        match refused {
            Some(error) => Err(error),
            None if self.snapshot_sent => {
                connection.exchange(&Message::SnapshotSent, None, Instant::now() + self.timeout)
            }
            None => Ok(()),
        }
    }
}

/// One connection that has said hello.
#[derive(Debug)]
struct Connection(OwnedFd);

impl Connection {
    /// Tries until the deadline. A refusal is final.
    fn retry(path: &Path, source: &SourceName, deadline: Instant) -> Result<Self, Error> {
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

    fn open(path: &Path, source: &SourceName, deadline: Instant) -> Result<Self, Error> {
        let failed = |e: nix::Error| Error::Connect { path: path.to_owned(), source: e.into() };
        let descriptor =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        connect(descriptor.as_raw_fd(), &address).map_err(failed)?;
        let mut connection = Self(descriptor);
        let hello = Message::Hello { version: PROTOCOL_VERSION, source: source.clone() };
        connection.exchange(&hello, None, deadline)?;
        Ok(connection)
    }

    /// Sends one message and waits for its answer. After an `Io` error the connection is of no more use.
    fn exchange(
        &mut self,
        message: &Message,
        descriptor: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let io = |operation| move |source| Error::Io { operation, source };
        let bytes = serde_json::to_vec(message).map_err(|e| Error::Message(e.to_string()))?;
        packet::send(self.0.as_fd(), &bytes, descriptor).map_err(io("sending a message"))?;
        self.wait(deadline).map_err(io("waiting for an answer"))?;
        let packet = packet::receive(self.0.as_fd())
            .map_err(io("receiving an answer"))?
            .ok_or_else(|| io("receiving an answer")(io::ErrorKind::UnexpectedEof.into()))?;
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
            let mut descriptors = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut descriptors, timeout) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the daemon has gone. Nothing is ever sent unasked, so anything readable is the end.
    fn closed(&self) -> bool {
        let mut descriptors = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        !matches!(poll(&mut descriptors, PollTimeout::ZERO), Ok(0) | Err(nix::Error::EINTR))
    }
}

fn describe(message: &Message) -> String {
    match message {
        Message::Hello { source, .. } => format!("source {source}"),
        Message::Add(pod) => format!("adding {}", pod.uid),
        Message::Keep { uid } => format!("keeping {uid}"),
        Message::Delete { uid } => format!("deleting {uid}"),
        Message::SnapshotSent => "the snapshot".to_owned(),
    }
}
