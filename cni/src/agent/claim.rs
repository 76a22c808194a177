//! Which agent of the node may remove what is installed there: the one that came last, or another of the same
//! DaemonSet. An agent claims the node when it starts, before its pod's ztunnel does; so the agent of a
//! DaemonSet that was deleted and made again leaves alone what its successor uses.
//!
//! Entry points: [`Claim::stake`], [`Claim::name_daemon_set`] and [`Claim::hold`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{files, lock};

/// The claim, in the run folder.
const FILE: &str = "claim.json";
/// Held while it is read or written, and while everything is removed.
const LOCK: &str = "claim.lock";
/// A removal that takes longer is broken.
const DEADLINE: Duration = Duration::from_secs(20);

/// This agent's claim.
#[derive(Debug)]
pub(crate) struct Claim {
    run_dir: PathBuf,
    process: String,
}

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Staked {
    /// Names the agent's process.
    process: String,
    /// The uid of its DaemonSet, once it is known.
    daemon_set: Option<String>,
}

impl Claim {
    /// Claims the node for this process; waits for a removal in progress.
    pub(crate) async fn stake(run_dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(run_dir)?;
        let process = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        let claim = Self { run_dir: run_dir.to_owned(), process };
        let _lock = claim.lock().await?;
        claim.write(None)?;
        Ok(claim)
    }

    /// Adds the uid of this agent's DaemonSet, unless another agent has claimed the node since.
    pub(crate) async fn name_daemon_set(&self, uid: &str) -> io::Result<()> {
        let _lock = self.lock().await?;
        match self.read() {
            Some(staked) if staked.process == self.process => self.write(Some(uid.to_owned())),
            _ => Ok(()),
        }
    }

    /// The right to remove what is installed, unless another agent needs it: as long as it is held, none can
    /// claim the node. `daemon_set`: the uid of this agent's.
    pub(crate) async fn hold(&self, daemon_set: Option<&str>) -> io::Result<Option<lock::Lock>> {
        let lock = self.lock().await?;
        let ours = match self.read() {
            // Removed by another agent of this DaemonSet.
            None => true,
            Some(staked) => {
                staked.process == self.process
                    || (daemon_set.is_some() && staked.daemon_set.as_deref() == daemon_set)
            }
        };
        Ok(ours.then_some(lock))
    }

    async fn lock(&self) -> io::Result<lock::Lock> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(DEADLINE, lock::take(self.run_dir.join(LOCK))).await.map_err(late)?
    }

    fn read(&self) -> Option<Staked> {
        serde_json::from_slice(&std::fs::read(self.run_dir.join(FILE)).ok()?).ok()
    }

    fn write(&self, daemon_set: Option<String>) -> io::Result<()> {
        let staked = Staked { process: self.process.clone(), daemon_set };
        files::replace(&self.run_dir.join(FILE), &serde_json::to_vec(&staked)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_last_agent_or_one_of_the_same_daemon_set_removes() {
        // Who stakes a claim after the first agent, the DaemonSets that both name, whether the first removes.
        let rows = [
            ("nobody", false, None, None, true),
            ("one that does not know its DaemonSet yet", true, Some("1"), None, false),
            ("one of the same DaemonSet", true, Some("1"), Some("1"), true),
            ("one of a DaemonSet that was made again", true, Some("1"), Some("2"), false),
            ("both unknown", true, None, None, false),
        ];
        for (name, second, own, others, expected) in rows {
            let folder = tempfile::tempdir().unwrap();
            let run_dir = folder.path().join("run");
            let first = Claim::stake(&run_dir).await.unwrap();
            if second {
                let second = Claim::stake(&run_dir).await.unwrap();
                if let Some(uid) = others {
                    second.name_daemon_set(uid).await.unwrap();
                }
            }
            if let Some(uid) = own {
                first.name_daemon_set(uid).await.unwrap();
            }
            assert_eq!(first.hold(own).await.unwrap().is_some(), expected, "{name}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_starts_during_a_removal_finds_a_new_folder() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("run");
        let first = Claim::stake(&run_dir).await.unwrap();
        let held = first.hold(None).await.unwrap().expect("nobody else has claimed it");
        let starting = tokio::spawn({
            let run_dir = run_dir.clone();
            async move { Claim::stake(&run_dir).await.map(drop) }
        });
        // The folder's content goes; the folder itself is a mount point.
        for entry in std::fs::read_dir(&run_dir).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        drop(held);
        starting.await.unwrap().unwrap();
        assert!(run_dir.join(FILE).exists());
    }
}
