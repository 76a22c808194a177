//! The messages ([`Message`]) and their answers ([`Answer`]), as they are written: JSON, one per packet.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The protocol's version, said in the first message.
pub const PROTOCOL_VERSION: u32 = 1;

/// The longest message either side takes.
pub(crate) const MAX_PACKET: usize = 16 * 1024;

/// Names are Kubernetes' (at most 253), a uid is made of a few of them.
const MAX_NAME: usize = 253;
const MAX_UID: usize = 1024;

/// The source that enrols. A snapshot of one source leaves the pods of others alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourceName(String);

impl SourceName {
    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SourceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if text.is_empty() || text.len() > 32 || !text.bytes().all(valid) {
            return Err(Error::SourceName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for SourceName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SourceName> for String {
    fn from(name: SourceName) -> Self {
        name.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload that is to be enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// As on the wire: `<cluster>//Pod/<namespace>/<name>`.
    pub uid: String,
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

/// A message of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The first message, and only that.
    Hello {
        /// [`PROTOCOL_VERSION`].
        version: u32,
        /// The source that speaks from now on.
        source: SourceName,
    },
    /// With the namespace's descriptor.
    Add(Pod),
    /// The pod was added before (perhaps by this source's predecessor) and stays.
    Keep {
        /// The pod's uid.
        uid: String,
    },
    /// The pod leaves the mesh.
    Delete {
        /// The pod's uid.
        uid: String,
    },
    /// All pods of the source have been named since its hello: the others leave.
    SnapshotSent,
    /// With the descriptor of the node's network namespace, for a daemon that lives in another one and may
    /// not open it. An older daemon refuses it and ends the session.
    NodeNetwork {},
    /// With a descriptor: the pod in this namespace is about to end, and its address to be another's. It is
    /// released later.
    Ending,
}

impl Message {
    /// Reads a packet.
    pub fn parse(packet: &[u8]) -> Result<Self, Error> {
        let message: Self = serde_json::from_slice(packet).map_err(|e| Error::Message(e.to_string()))?;
        message.check()?;
        Ok(message)
    }

    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Hello { version, .. } if *version != PROTOCOL_VERSION => Err(Error::Message(format!(
                "protocol version {version} is not supported, need {PROTOCOL_VERSION}"
            ))),
            Self::Hello { .. } | Self::SnapshotSent | Self::NodeNetwork {} | Self::Ending => Ok(()),
            Self::Add(pod) => {
                text("uid", &pod.uid, MAX_UID)?;
                text("namespace", &pod.namespace, MAX_NAME)?;
                text("name", &pod.name, MAX_NAME)
            }
            Self::Keep { uid } | Self::Delete { uid } => text("uid", uid, MAX_UID),
        }
    }
}

fn text(field: &str, value: &str, longest: usize) -> Result<(), Error> {
    if value.is_empty() || value.len() > longest || value.chars().any(char::is_control) {
        return Err(Error::Message(format!(
            "field {field}: expected 1 to {longest} bytes without control characters"
        )));
    }
    Ok(())
}

/// What the daemon answers to each message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Ack {},
    /// Not done, and why.
    Refused {
        /// The daemon's reason.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
