//! The lab's side of enrolment: it plays the CNI plugin on a node's ztunnel socket, one JSON message a
//! packet.
//!
//! Written against the protocol rather than with the daemon's own client, so that the two check each other
//! and the lab stays free of an async runtime.

use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};

use crate::pod::Pod;

/// A connection to a node's enrolment socket. Closing it releases nothing.
#[derive(Debug)]
pub struct Enrolment {
    socket: OwnedFd,
}

impl Enrolment {
    /// Connects and introduces itself as the lab's own source.
    pub fn connect(path: &Path) -> Result<Self> {
        Self::connect_as(path, "harness")
    }

    /// Connects as another source of pods.
    pub fn connect_as(path: &Path, source: &str) -> Result<Self> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        // Longer than the daemon's own bounded wait for its first configuration.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(60, 0))?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
            .with_context(|| format!("failed to connect to {}", path.display()))?;
        let this = Self { socket };
        this.send(&json!({"hello": {"version": 1, "source": source}}), None)?;
        Ok(this)
    }

    /// Adds a pod by its namespace.
    pub fn add(&self, pod: &Pod) -> Result<()> {
        let spec = &pod.spec;
        let message = json!({"add": {"uid": spec.uid(), "namespace": spec.namespace, "name": spec.name}});
        self.send(&message, Some(pod.netns.fd())).with_context(|| format!("failed to enrol {}", spec.key()))
    }

    /// Says that a pod which an earlier daemon enrolled is still wanted.
    pub fn keep(&self, pod: &Pod) -> Result<()> {
        self.send(&json!({"keep": {"uid": pod.spec.uid()}}), None)
            .with_context(|| format!("failed to keep {}", pod.spec.key()))
    }

    /// Lets a pod go.
    pub fn delete(&self, pod: &Pod) -> Result<()> {
        let message = json!({"delete": {"uid": pod.spec.uid()}});
        self.send(&message, None).with_context(|| format!("failed to release {}", pod.spec.key()))
    }

    /// Everything wanted has been added or kept; the daemon releases the rest.
    pub fn snapshot_sent(&self) -> Result<()> {
        self.send(&json!("snapshot_sent"), None).context("failed to end the snapshot")
    }

    /// Sends any message and waits for its acknowledgement.
    pub fn send(&self, message: &Value, namespace: Option<BorrowedFd<'_>>) -> Result<()> {
        let text = message.to_string();
        let descriptors = namespace.map(|fd| [fd.as_raw_fd()]);
        let control: Vec<_> = descriptors.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
        let data = [IoSlice::new(text.as_bytes())];
        sendmsg::<()>(self.socket.as_raw_fd(), &data, &control, MsgFlags::MSG_NOSIGNAL, None)
            .context("failed to send")?;
        let mut answer = vec![0; 64 << 10];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())
            .context("failed to receive the acknowledgement")?;
        if length == 0 {
            bail!("the daemon closed the enrolment socket");
        }
        let answer: Value =
            serde_json::from_slice(&answer[..length]).context("failed to parse the answer")?;
        if answer.get("ack").is_some() {
            return Ok(());
        }
        bail!(
            "{}",
            answer.pointer("/refused/reason").and_then(Value::as_str).unwrap_or("an answer of unknown form")
        )
    }
}
