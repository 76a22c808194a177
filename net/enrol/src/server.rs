//! The daemon's side: one session per source, one request at a time, every request answered.
//!
//! Entry points: [`Server::bind`], then [`serve`].

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::chain;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;

use crate::error::Error;
use crate::message::{Answer, Message, Pod, SourceName};
use crate::netns::{NetworkNamespace, NetworkNamespaceError};
use crate::packet::{self, Packet};

/// A source holds one connection; more than this is a mistake somewhere.
const MAX_SESSIONS: usize = 64;
/// How long a peer may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// What a source asks for, parsed and its descriptor checked.
#[derive(Debug)]
pub enum Request {
    /// A source has come (again): what it names from now on is its snapshot.
    Hello,
    /// Enrol this workload.
    Add(Pod, NetworkNamespace),
    /// This workload, enrolled before, stays.
    Keep {
        /// The pod's uid.
        uid: String,
    },
    /// Release this workload.
    Delete {
        /// The pod's uid.
        uid: String,
    },
    /// What has been enrolled by this source and was not named since its hello is to be released.
    SnapshotSent,
    /// This is the node's network namespace.
    NodeNetwork(NetworkNamespace),
    /// The pod in this namespace is about to end.
    Ending(NetworkNamespace),
}

/// Carries requests out.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request of a source; an error is the reason for refusing it.
    fn handle(
        &self,
        source: &SourceName,
        request: Request,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// The listening socket.
#[derive(Debug)]
pub struct Server {
    listener: AsyncFd<OwnedFd>,
    uid: u32,
}

impl Server {
    /// Listens at the path, replacing any socket that lies there. Only root may connect.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Listen { path: path.to_owned(), source };
        let listener = listen_at(path).map_err(failed)?;
        Ok(Self { listener: register(listener).map_err(failed)?, uid: 0 })
    }

    async fn accept(&self) -> io::Result<Session> {
        let descriptor = loop {
            let mut ready = self.listener.readable().await?;
            if let Ok(accepted) = ready.try_io(|listener| accept(listener.get_ref())) {
                break accepted?;
            }
        };
        let peer = getsockopt(&descriptor, PeerCredentials)?;
        Ok(Session { socket: register(descriptor)?, allowed: peer.uid() == self.uid, pid: peer.pid() })
    }
}

/// Accepts sources forever and hands what they ask for to the handler. Dropping the future closes every
/// session; what is enrolled stays enrolled.
pub async fn serve<H: Handler>(server: Server, handler: Arc<H>) {
    let mut sessions = JoinSet::new();
    loop {
        while sessions.try_join_next().is_some() {}
        if sessions.len() >= MAX_SESSIONS {
            sessions.join_next().await;
            continue;
        }
        match server.accept().await {
            Ok(session) => {
                let handler = handler.clone();
                sessions.spawn(async move {
                    let pid = session.pid;
                    if let Err(error) = session.run(handler.as_ref()).await {
                        tracing::warn!(
                            pid,
                            error = &error as &dyn std::error::Error,
                            "enrolment session ended"
                        );
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept enrolment connection");
                // Descriptors have run out: wait for some to close rather than spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One source's connection.
#[derive(Debug)]
struct Session {
    socket: AsyncFd<OwnedFd>,
    allowed: bool,
    pid: i32,
}

impl Session {
    /// Until the peer closes or breaks the protocol. A refused request leaves the session open.
    async fn run<H: Handler>(self, handler: &H) -> Result<(), Error> {
        if !self.allowed {
            let reason = "only root may enrol".to_owned();
            self.answer(&Answer::Refused { reason: reason.clone() }).await?;
            return Err(Error::Message(reason));
        }
        let mut source = None;
        loop {
            let packet = match &source {
                Some(_) => self.receive().await?,
                None => tokio::time::timeout(HELLO_TIMEOUT, self.receive())
                    .await
                    .map_err(|_| Error::Message("no hello in time".to_owned()))??,
            };
            let Some(packet) = packet else { return Ok(()) };
            let result = match read(packet, &mut source, self.pid) {
                Ok((source, request)) => handler.handle(source, request).await,
                // The stream of messages is intact, only this one's content is not acceptable.
                Err(error @ Error::Namespace(_)) => Err(chain(&error)),
                Err(error) => {
                    self.answer(&Answer::Refused { reason: chain(&error) }).await?;
                    return Err(error);
                }
            };
            let answer = match result {
                Ok(()) => Answer::Ack {},
                Err(reason) => Answer::Refused { reason },
            };
            self.answer(&answer).await?;
        }
    }

    async fn receive(&self) -> Result<Option<Packet>, Error> {
        self.socket
            .async_io(Interest::READABLE, |socket| packet::receive(socket.as_fd()))
            .await
            .map_err(|source| Error::Io { operation: "receive message", source })
    }

    async fn answer(&self, answer: &Answer) -> Result<(), Error> {
        let bytes = serde_json::to_vec(answer).map_err(|e| Error::Message(e.to_string()))?;
        self.socket
            .async_io(Interest::WRITABLE, |socket| packet::send(socket.as_fd(), &bytes, None))
            .await
            .map_err(|source| Error::Io { operation: "send answer", source })
    }
}

/// A packet as a request, with the source it is from.
fn read(packet: Packet, source: &mut Option<SourceName>, pid: i32) -> Result<(&SourceName, Request), Error> {
    if packet.truncated {
        return Err(Error::Message("message is too long".to_owned()));
    }
    let message = Message::parse(&packet.bytes)?;
    let mut descriptors = packet.descriptors.into_iter();
    let (descriptor, more) = (descriptors.next(), descriptors.next());
    if more.is_some() {
        return Err(Error::Message("more than one descriptor".to_owned()));
    }
    if descriptor.is_some() && !matches!(message, Message::Add(_) | Message::NodeNetwork {} | Message::Ending)
    {
        return Err(Error::Message("unexpected descriptor".to_owned()));
    }
    let request = match message {
        Message::Hello { source: name, .. } => {
            if source.is_some() {
                return Err(Error::Message("hello was already received".to_owned()));
            }
            return Ok((source.insert(name), Request::Hello));
        }
        Message::Add(pod) => {
            let descriptor = descriptor.ok_or_else(|| Error::Message("add needs a descriptor".to_owned()))?;
            // Checked before the descriptor: a session without a hello gets nothing.
            if source.is_none() {
                return Err(Error::Message("the first message must be a hello".to_owned()));
            }
            let namespace: Result<_, NetworkNamespaceError> = NetworkNamespace::of_pod(descriptor, pid);
            Request::Add(pod, namespace?)
        }
        Message::Ending => Request::Ending(any_namespace("ending", descriptor)?),
        Message::Keep { uid } => Request::Keep { uid },
        Message::Delete { uid } => Request::Delete { uid },
        Message::SnapshotSent => Request::SnapshotSent,
        Message::NodeNetwork {} => {
            let needed = || Error::Message("node_network needs a descriptor".to_owned());
            Request::NodeNetwork(NetworkNamespace::new(descriptor.ok_or_else(needed)?)?)
        }
    };
    let source =
        source.as_ref().ok_or_else(|| Error::Message("the first message must be a hello".to_owned()))?;
    Ok((source, request))
}

/// The namespace of a message that needs one, which may be the host's.
fn any_namespace(message: &str, descriptor: Option<OwnedFd>) -> Result<NetworkNamespace, Error> {
    let descriptor = descriptor.ok_or_else(|| Error::Message(format!("{message} needs a descriptor")))?;
    Ok(NetworkNamespace::new(descriptor)?)
}

/// Makes the socket under another name and renames it, so that there is never a moment without one.
fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let listener = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    // On the socket, before bind: the file is never there with another mode.
    fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = Path::new(&name);
    match std::fs::remove_file(temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    bind(listener.as_raw_fd(), &UnixAddr::new(temporary)?)?;
    listen(&listener, Backlog::new(16)?)?;
    std::fs::rename(temporary, path)?;
    Ok(listener)
}

#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives.
    unsafe { AsyncFd::register(descriptor) }.map_err(|e| io::Error::other(e.to_string()))
}

#[expect(unsafe_code, reason = "accept4 gives a plain number, taken into ownership here")]
fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let accepted = nix::sys::socket::accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: the kernel has just made this descriptor; no other code knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}

#[cfg(test)]
mod tests;
