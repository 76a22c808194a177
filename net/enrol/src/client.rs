//! A source's side: blocking calls, and a thread that keeps the daemon informed across its restarts.
//!
//! Entry points: [`Client`], [`enrol_once`] and [`release_once`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::connection::{Connection, WATCH_INTERVAL};
use crate::error::Error;
use crate::message::{Message, Pod, SourceName};

/// Before a daemon that refused something is asked again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// A source's connection to the daemon.
///
/// Every call blocks until the daemon has answered, or the timeout is over. What was added is remembered,
/// with a copy of the descriptor: when the daemon restarts, or another daemon takes its socket's place while
/// the old one still runs (an upgrade), a thread connects to the one that listens now and enrols everything
/// again, before anything else. Dropping the client closes the connection and releases nothing.
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
        Self::connect_from(path, source, timeout, None)
    }

    /// As [`Client::connect`], and tells every daemon that this is the node's network namespace. One that
    /// does not know the message is asked no second time.
    pub fn connect_from(
        path: impl Into<PathBuf>,
        source: SourceName,
        timeout: Duration,
        node_network: Option<OwnedFd>,
    ) -> Result<Self, Error> {
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
            kept: BTreeSet::new(),
            snapshot_sent: false,
            // Nothing is enrolled yet, but the namespace is to be told.
            replay: if node_network.is_some() { Replay::Needed } else { Replay::Complete },
            node_network,
        };
        let thread = std::thread::Builder::new()
            .name("enrol".to_owned())
            .spawn(move || keeper.run(&incoming))
            .map_err(|source| Error::Io { operation: "start the client's thread", source })?;
        Ok(Self { commands: Some(commands), thread: Some(thread), timeout })
    }

    /// Enrols a workload; returns when it is ready: its listeners up, its programs attached.
    pub fn add(&self, pod: &Pod, namespace: BorrowedFd<'_>) -> Result<(), Error> {
        let descriptor = namespace
            .try_clone_to_owned()
            .map_err(|source| Error::Io { operation: "copy the namespace's descriptor", source })?;
        self.call(Message::Add(pod.clone()), Some(descriptor))
    }

    /// Keeps a workload that was enrolled earlier, also by a predecessor of this process.
    pub fn keep(&self, uid: &str) -> Result<(), Error> {
        self.call(Message::Keep { uid: uid.to_owned() }, None)
    }

    /// Releases a workload.
    pub fn delete(&self, uid: &str) -> Result<(), Error> {
        self.call(Message::Delete { uid: uid.to_owned() }, None)
    }

    /// Completes the snapshot: all pods have been added or kept. The daemon releases this source's others.
    pub fn snapshot_sent(&self) -> Result<(), Error> {
        self.call(Message::SnapshotSent, None)
    }

    fn call(&self, message: Message, descriptor: Option<OwnedFd>) -> Result<(), Error> {
        let (reply, answer) = sync_channel(1);
        let deadline = Instant::now() + self.timeout;
        let command = Command { message, descriptor, deadline, reply };
        self.commands.as_ref().ok_or_else(gone)?.send(command).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

fn gone() -> Error {
    Error::Io { operation: "reach the daemon", source: io::ErrorKind::BrokenPipe.into() }
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

/// Enrols one workload over a connection of its own, for a source that does not stay (a CNI plugin). Tries
/// until the timeout is over, also with the next daemon when one ends in between; a refusal is final.
pub fn enrol_once(
    path: &Path,
    source: &SourceName,
    pod: &Pod,
    namespace: BorrowedFd<'_>,
    timeout: Duration,
) -> Result<(), Error> {
    once(path, source, &Message::Add(pod.clone()), Some(namespace), timeout)
}

/// Releases one workload over a connection of its own, as [`enrol_once`] enrols one.
pub fn release_once(path: &Path, source: &SourceName, uid: &str, timeout: Duration) -> Result<(), Error> {
    once(path, source, &Message::Delete { uid: uid.to_owned() }, None, timeout)
}

/// Tells the daemon that the pod in this namespace is about to end.
pub fn ending_once(
    path: &Path,
    source: &SourceName,
    namespace: BorrowedFd<'_>,
    timeout: Duration,
) -> Result<(), Error> {
    once(path, source, &Message::Ending, Some(namespace), timeout)
}

fn once(
    path: &Path,
    source: &SourceName,
    message: &Message,
    descriptor: Option<BorrowedFd<'_>>,
    timeout: Duration,
) -> Result<(), Error> {
    let deadline = Instant::now() + timeout;
    loop {
        let mut connection = Connection::retry(path, source, deadline)?;
        match connection.exchange(message, descriptor, deadline) {
            Err(Error::Io { .. }) if Instant::now() + WATCH_INTERVAL < deadline => {
                std::thread::sleep(WATCH_INTERVAL);
            }
            other => return other,
        }
    }
}

/// What the thread holds: what has been enrolled, and whether the connected daemon knows.
#[derive(Debug)]
struct Keeper {
    path: PathBuf,
    source: SourceName,
    timeout: Duration,
    connection: Option<Connection>,
    pods: BTreeMap<String, (Pod, OwnedFd)>,
    /// Uids kept, and not added since.
    kept: BTreeSet<String>,
    snapshot_sent: bool,
    replay: Replay,
    /// The node's network namespace, until a daemon refuses it.
    node_network: Option<OwnedFd>,
}

/// Whether the connected daemon has been sent what was enrolled before it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replay {
    /// Not yet.
    Needed,
    /// It has, and refused some: sent again at that time.
    Refused(Instant),
    /// It has, and took everything.
    Complete,
}

impl Keeper {
    fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            match commands.recv_timeout(WATCH_INTERVAL) {
                Ok(command) => {
                    let result = self.execute(&command);
                    // What is to be kept is so also when this daemon could not serve it.
                    if result.is_ok() || matches!(command.message, Message::Keep { .. }) {
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
                self.kept.remove(&pod.uid);
                self.pods.insert(pod.uid.clone(), (pod, descriptor));
            }
            (Message::Keep { uid }, _) if !self.pods.contains_key(&uid) => {
                self.kept.insert(uid);
            }
            (Message::Delete { uid }, _) => {
                self.kept.remove(&uid);
                self.pods.remove(&uid);
            }
            (Message::SnapshotSent, _) => self.snapshot_sent = true,
            _ => {}
        }
    }

    /// Carries a caller's message, over a new connection if the old one is gone or its daemon is no longer
    /// the one that listens. A new daemon gets everything else first.
    fn execute(&mut self, command: &Command) -> Result<(), Error> {
        loop {
            self.follow();
            if self.connection.is_none() {
                let fresh = Connection::retry(&self.path, &self.source, command.deadline)?;
                self.adopt(fresh);
            }
            if self.replay == Replay::Needed {
                self.try_replay();
            }
            let descriptor = command.descriptor.as_ref().map(AsFd::as_fd);
            let Some(connection) = &mut self.connection else {
                if Instant::now() < command.deadline {
                    continue;
                }
                return Err(gone());
            };
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

    /// Connects again after a restart of the daemon, and enrols everything with the new one.
    fn watch(&mut self) {
        if self.connection.as_ref().is_some_and(Connection::closed) {
            self.connection = None;
        }
        self.follow();
        if self.connection.is_none() {
            let Ok(fresh) = self.open() else { return };
            self.adopt(fresh);
        }
        match self.replay {
            Replay::Complete => {}
            Replay::Refused(again) if Instant::now() < again => {}
            Replay::Needed | Replay::Refused(_) => self.try_replay(),
        }
    }

    /// Changes over to the daemon that listens at the path now. Until that one has answered, the old one
    /// stays.
    fn follow(&mut self) {
        if self.connection.as_ref().is_some_and(|connection| connection.replaced(&self.path))
            && let Ok(fresh) = self.open()
        {
            self.adopt(fresh);
        }
    }

    fn open(&self) -> Result<Connection, Error> {
        Connection::open(&self.path, &self.source, Instant::now() + self.timeout)
    }

    fn adopt(&mut self, fresh: Connection) {
        self.connection = Some(fresh);
        self.replay = Replay::Needed;
    }

    fn try_replay(&mut self) {
        match self.replay_all() {
            Ok(()) => self.replay = Replay::Complete,
            Err(error @ Error::Refused { .. }) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "failed to enrol again");
                self.replay = Replay::Refused(Instant::now() + REFUSED_PAUSE);
            }
            Err(_) => self.connection = None,
        }
    }

    fn replay_all(&mut self) -> Result<(), Error> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if let Some(namespace) = &self.node_network {
            let deadline = Instant::now() + self.timeout;
            match connection.exchange(&Message::NodeNetwork {}, Some(namespace.as_fd()), deadline) {
                // The session has ended with it: the next one goes without.
                Err(error @ Error::Refused { .. }) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "daemon takes no namespace");
                    self.node_network = None;
                    return Err(gone());
                }
                other => other?,
            }
        }
        // One that cannot be enrolled must not keep the others out; without it the snapshot is not complete.
        let mut refused = None;
        for (pod, descriptor) in self.pods.values() {
            let deadline = Instant::now() + self.timeout;
            match connection.exchange(&Message::Add(pod.clone()), Some(descriptor.as_fd()), deadline) {
                Err(error @ Error::Refused { .. }) => refused = Some(error),
                other => other?,
            }
        }
        for uid in &self.kept {
            let deadline = Instant::now() + self.timeout;
            match connection.exchange(&Message::Keep { uid: uid.clone() }, None, deadline) {
                // Not there, or not served: naming it is what counts.
                Err(Error::Refused { .. }) => {}
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
