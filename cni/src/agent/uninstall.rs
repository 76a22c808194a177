//! Whether Ambit is being uninstalled from this node, and what is removed then. It is when the agent's own
//! DaemonSet is deleted; not at a restart, an upgrade or an eviction, nor while the API server does not
//! answer.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_kube::error::chain;
use ambit_kube::retry::within;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;

use super::installer::{self, Layout};
use super::{files, telemetry};

/// In the run folder: the DaemonSet that this node's agents have seen. One that was never seen (a mistyped
/// name in a configuration) cannot have been deleted.
const WITNESS: &str = "daemon-set";
/// The deadline of the last request.
const DEADLINE: Duration = Duration::from_secs(2);

/// The agent's own DaemonSet.
pub(crate) struct Owner {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) run_dir: PathBuf,
}

/// The state of the DaemonSet at the API server.
enum Presence {
    Present,
    Deleting,
    Absent,
    /// The API server did not answer.
    Unknown,
}

impl Owner {
    /// Resolves when the DaemonSet is being deleted, or is gone.
    pub(crate) async fn deleted(&self, uninstalling: &watch::Sender<bool>) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut watched = std::pin::pin!(watcher(self.api(), only).default_backoff());
        let mut listed = false;
        while let Some(event) = futures::StreamExt::next(&mut watched).await {
            let gone = match event {
                Ok(Event::Apply(owner) | Event::InitApply(owner)) => {
                    listed = true;
                    self.witness(&owner);
                    owner.metadata.deletion_timestamp.is_some()
                }
                // The event is proof enough: an uninstallation revokes our permissions a moment later, and a
                // request would then be refused.
                Ok(Event::Delete(_)) => !matches!(self.presence().await, Presence::Present),
                Ok(Event::Init) => {
                    listed = false;
                    false
                }
                // A list without it is no proof: ask for it by name.
                Ok(Event::InitDone) => !listed && self.is_deleted().await,
                Err(error) => {
                    telemetry::API_ERRORS.count();
                    tracing::warn!(error = chain(&error), "failed to watch the agent's DaemonSet");
                    false
                }
            };
            if gone {
                tracing::info!(daemon_set = self.name, "DaemonSet deleted; uninstalling from this node");
                // The receiver lives as long as the agent.
                _ = uninstalling.send(true);
                return;
            }
        }
    }

    /// Whether it is deleted, as the API server says now. An error is not a deletion.
    pub(crate) async fn is_deleted(&self) -> bool {
        match self.presence().await {
            Presence::Deleting => true,
            Presence::Absent => self.was_seen(),
            Presence::Present | Presence::Unknown => false,
        }
    }

    async fn presence(&self) -> Presence {
        let api = self.api();
        match within(DEADLINE, api.get_opt(&self.name)).await {
            Ok(Some(owner)) if owner.metadata.deletion_timestamp.is_some() => Presence::Deleting,
            Ok(Some(_)) => Presence::Present,
            Ok(None) => Presence::Absent,
            Err(error) => {
                tracing::info!(error = chain(&error), "failed to read the agent's DaemonSet");
                Presence::Unknown
            }
        }
    }

    fn api(&self) -> Api<DaemonSet> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn witness(&self, owner: &DaemonSet) {
        if !self.was_seen()
            && let Err(error) =
                files::replace(&self.run_dir.join(WITNESS), self.full_name().as_bytes(), 0o600)
        {
            tracing::warn!(%error, uid = owner.uid(), "failed to record the agent's DaemonSet");
        }
    }

    fn was_seen(&self) -> bool {
        std::fs::read(self.run_dir.join(WITNESS)).is_ok_and(|name| name == self.full_name().as_bytes())
    }

    fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What Ambit installs on a node.
#[derive(Clone, Debug)]
pub(crate) struct Traces {
    pub(crate) layout: Layout,
    /// The instance's folder in the BPF file system. Programs whose links are pinned there are detached with
    /// it.
    pub(crate) pins: PathBuf,
    pub(crate) run_dir: PathBuf,
    /// The run folder by its path on the host: a container cannot remove the folder that is mounted into it.
    pub(crate) outside: PathBuf,
}

impl Traces {
    /// Removes everything. Continues after errors, and returns them.
    pub(crate) fn remove(&self) -> Vec<String> {
        let mut errors: Vec<String> =
            installer::remove(&self.layout).iter().map(|error| chain(error)).collect();
        let mut check = |path: &Path, result: io::Result<()>| {
            if let Err(error) = result
                && error.kind() != io::ErrorKind::NotFound
            {
                errors.push(format!("failed to remove {}: {error}", path.display()));
            }
        };
        check(&self.pins, std::fs::remove_dir_all(&self.pins));
        check(&self.run_dir, empty(&self.run_dir));
        if let Err(error) = std::fs::remove_dir(&self.run_dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            // It is a mount point in this container.
            check(&self.outside, std::fs::remove_dir(&self.outside));
        }
        errors
    }
}

/// Removes the content of a folder.
fn empty(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
