//! What is written of a cluster, from the moment there is something to remove.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::machine::{self, Machine, Spec};
use crate::network::{self, Subnet};
use crate::node::Node;
use crate::parts::Parts;

/// A cluster as its folder describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) name: String,
    pub(crate) subnet: Subnet,
    /// Tells it from an earlier or later one with the same subnet: what one leaves behind, another must not
    /// be taken for.
    pub(crate) id: String,
    pub(crate) nodes: u8,
    pub(crate) taints: Vec<String>,
    pub(crate) detached: bool,
    pub(crate) parts: PathBuf,
    pub(crate) helper: PathBuf,
}

const FILE: &str = "cluster.json";

impl State {
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        std::fs::write(&path, format!("{:#}\n", serde_json::to_value(self)?))
            .with_context(|| format!("failed to write {}", path.display()))
    }

    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text = std::fs::read(&path)
            .with_context(|| format!("failed to read a cluster in {}", folder.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("failed to read {}", path.display()))
    }

    pub(crate) fn control(&self, folder: &Path) -> Machine {
        Machine::new(self.spec(folder, "control"))
    }

    pub(crate) fn nodes(&self, folder: &Path, parts: &Parts) -> Vec<Node> {
        let node = |number| Node {
            machine: Machine::new(self.spec(folder, &format!("node{number}"))),
            number,
            subnet: self.subnet,
            parts: parts.clone(),
            taints: self.taints.clone(),
            nodes: self.nodes,
            control: self.control(folder),
        };
        (1..=self.nodes).map(node).collect()
    }

    fn spec(&self, folder: &Path, name: &str) -> Spec {
        Spec {
            name: name.to_owned(),
            cgroup: format!("{}/{name}", self.group()),
            folder: folder.join(name),
            shared: vec![folder.to_path_buf(), self.parts.clone()],
            helper: self.helper.clone(),
            detached: self.detached,
        }
    }

    /// The state of a new cluster with this subnet.
    pub(crate) fn new_id(subnet: Subnet) -> Result<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        Ok(format!("{}-{:x}", subnet.0, now.as_micros()))
    }

    /// The group that all the cluster's processes are below.
    fn group(&self) -> String {
        format!("/ambit-cluster-{}", self.id)
    }

    /// Ends and removes everything of the cluster, finished or not.
    pub(crate) fn remove(&self, folder: &Path) -> Result<()> {
        let names = (1..=self.nodes).map(|number| format!("node{number}")).chain(["control".to_owned()]);
        for name in names {
            Machine::new(self.spec(folder, &name)).kill()?;
        }
        machine::sweep(&self.group())?;
        network::unlink(self.subnet, &self.id)
    }
}

/// Held by the process that makes or owns a cluster.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held")] Flock<File>);

impl Lock {
    /// Takes the lock of a folder that no other process holds.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let file = File::open(folder).with_context(|| format!("failed to open {}", folder.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error);
        Ok(Self(lock.with_context(|| {
            format!("failed to lock the cluster in {}: it belongs to a running process", folder.display())
        })?))
    }
}

/// Removes what the cluster of this folder left, and the folder; its lock is held by the caller.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    if let Ok(state) = State::read(folder) {
        state.remove(folder)?;
    }
    std::fs::remove_dir_all(folder).with_context(|| format!("failed to remove {}", folder.display()))
}

/// [`remove`] for a folder that may not be there.
pub(crate) fn clear(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let _lock = Lock::new(folder)?;
    remove(folder)
}
