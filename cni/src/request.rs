//! What the plugin asks of the node's agent, over a socket in the run folder that only root may open: the
//! plugin's own credential cannot write, so the agent annotates the pods that the plugin has enrolled.
//!
//! One connection carries one request and one answer, each a line of JSON. The plugin's side is [`ask`].

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The socket's name, beside ztunnel's.
pub(crate) const SOCKET: &str = "agent.sock";
/// The longest line: names of Kubernetes have at most 253 characters.
pub(crate) const MAX_LINE: u64 = 4096;
/// Between two attempts to connect: the agent may be just starting, or handing over to its successor.
const PAUSE: Duration = Duration::from_millis(50);

/// A request of the plugin's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// This pod is enrolled: to be annotated before its containers start, so that its peers know.
    Enrolled { namespace: String, name: String, uid: String },
    /// The API server does not take the plugin's credential, or proves itself by a certificate that the
    /// credential's authorities did not sign.
    CredentialRefused,
}

/// The agent's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Why it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Why a request is not known to be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to ask the node's agent")]
    Io(#[from] io::Error),
    #[error("failed to read the agent's answer")]
    Answer(#[from] serde_json::Error),
    #[error("the node's agent refused: {0}")]
    Refused(String),
}

/// Asks the agent, again until it answers or the deadline has passed.
pub(crate) fn ask(socket: &Path, request: &Request, deadline: Duration) -> Result<(), Error> {
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(PAUSE);
        match ask_once(socket, request, left) {
            // No agent, or one that has just ended.
            Err(Error::Io(_)) if Instant::now() + PAUSE < end => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}

fn ask_once(socket: &Path, request: &Request, timeout: Duration) -> Result<(), Error> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    match serde_json::from_str::<Answer>(&answer)?.error {
        None => Ok(()),
        Some(error) => Err(Error::Refused(error)),
    }
}
