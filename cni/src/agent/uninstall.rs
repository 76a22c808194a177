//! Whether what Ambit installed on this node is to be removed when the agent ends: when the agent's own
//! DaemonSet is deleted, or when its pods do not belong on this node any more; not at a restart, an upgrade
//! or an eviction, nor while the API server does not answer. And what is removed then.
//!
//! Entry points: [`Owner::deleted`], [`Owner::verdict`] and [`Traces::remove`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_kube::error::chain;
use ambit_kube::retry::within;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::claim::Claim;
use super::installer::{self, Layout};
use super::{files, placement, telemetry};

/// In the run folder: the DaemonSet that this node's agents have seen. One that was never seen (a mistyped
/// name in a configuration) cannot have been deleted.
const WITNESS: &str = "daemon-set";
/// The deadline of a request: the pod is about to be killed.
const DEADLINE: Duration = Duration::from_secs(2);

/// The agent's own DaemonSet.
pub(crate) struct Owner {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The agent's pod; it knows by it the uid of its DaemonSet.
    pub(crate) pod: Option<String>,
    pub(crate) node: String,
    pub(crate) run_dir: PathBuf,
    pub(crate) uid: Mutex<Option<String>>,
}

/// Whether what is installed on this node is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is known that speaks for it.
    Keep,
    /// The agent's DaemonSet is deleted.
    Deleted,
    /// The DaemonSet's pods do not belong on this node any more.
    Left,
}

/// The DaemonSet of that name at the API server.
#[derive(Debug)]
enum Presence {
    Present(Box<DaemonSet>),
    Absent,
    /// The API server did not answer, or refused.
    Unknown,
}

/// What is known of the agent's own DaemonSet.
#[derive(Clone, Copy, Debug)]
struct Known<'a> {
    /// Its uid.
    uid: Option<&'a str>,
    /// It has existed.
    seen: bool,
    /// The watch has shown its deletion.
    deletion_seen: bool,
}

impl Owner {
    /// Resolves when the agent's DaemonSet is being deleted, or is gone.
    pub(crate) async fn deleted(&self, claim: &Claim, uninstalling: &watch::Sender<bool>) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name)).any_semantic();
        let mut watched = std::pin::pin!(watcher(self.api(), only).default_backoff());
        let mut listed = false;
        while let Some(event) = futures::StreamExt::next(&mut watched).await {
            let gone = match event {
                Ok(Event::Apply(owner) | Event::InitApply(owner)) => {
                    listed = true;
                    self.find_uid(claim).await;
                    self.witness(&owner);
                    self.is_gone(&Presence::Present(Box::new(owner)))
                }
                // The event is proof enough: an uninstallation revokes our permissions a moment later, and a
                // request would then be refused.
                Ok(Event::Delete(_)) => match self.presence().await {
                    Presence::Unknown => true,
                    now => self.is_gone(&now),
                },
                Ok(Event::Init) => {
                    listed = false;
                    false
                }
                // A list without it is no proof: ask for it by name.
                Ok(Event::InitDone) => !listed && self.is_gone(&self.presence().await),
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

    /// Whether everything is to be removed from this node, as the API server says now. An error says nothing.
    pub(crate) async fn verdict(&self, deletion_seen: bool) -> Verdict {
        let presence = self.presence().await;
        let node = match &presence {
            Presence::Present(_) => self.node().await,
            Presence::Absent | Presence::Unknown => None,
        };
        let uid = self.uid();
        let known = Known { uid: uid.as_deref(), seen: self.was_seen(), deletion_seen };
        verdict(known, &presence, node.as_ref())
    }

    /// The uid of the agent's own DaemonSet, as far as it is known.
    pub(crate) fn uid(&self) -> Option<String> {
        self.uid.lock().clone()
    }

    /// Whether the agent's own DaemonSet is gone.
    fn is_gone(&self, presence: &Presence) -> bool {
        let uid = self.uid();
        is_gone(Known { uid: uid.as_deref(), seen: self.was_seen(), deletion_seen: false }, presence)
    }

    /// Learns from the agent's pod which DaemonSet is its own: another may have the name by now.
    async fn find_uid(&self, claim: &Claim) {
        let (Some(name), None) = (&self.pod, self.uid()) else { return };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        match within(DEADLINE, pods.get_metadata(name)).await {
            Ok(pod) => {
                let owner = pod.owner_references().iter().find(|owner| owner.kind == "DaemonSet");
                let Some(uid) = owner.map(|owner| owner.uid.clone()) else { return };
                if let Err(error) = claim.name_daemon_set(&uid).await {
                    tracing::warn!(%error, uid, "failed to record the agent's DaemonSet");
                }
                *self.uid.lock() = Some(uid);
            }
            Err(error) => {
                telemetry::API_ERRORS.count();
                tracing::warn!(error = chain(&error), pod = name, "failed to read the agent's pod");
            }
        }
    }

    async fn presence(&self) -> Presence {
        match within(DEADLINE, self.api().get_opt(&self.name)).await {
            Ok(Some(owner)) => Presence::Present(Box::new(owner)),
            Ok(None) => Presence::Absent,
            Err(error) => {
                tracing::info!(error = chain(&error), "failed to read the agent's DaemonSet");
                Presence::Unknown
            }
        }
    }

    async fn node(&self) -> Option<Node> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = within(DEADLINE, nodes.get_opt(&self.node)).await;
        node.unwrap_or_else(|error| {
            tracing::info!(error = chain(&error), node = self.node, "failed to read the node");
            None
        })
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

/// Whether the agent's own DaemonSet is deleted, or being deleted.
fn is_gone(known: Known<'_>, presence: &Presence) -> bool {
    match presence {
        Presence::Present(found) => {
            let another = known.uid.is_some_and(|own| found.metadata.uid.as_deref() != Some(own));
            another || found.metadata.deletion_timestamp.is_some()
        }
        Presence::Absent => known.seen || known.uid.is_some() || known.deletion_seen,
        Presence::Unknown => known.deletion_seen,
    }
}

/// Whether everything is to be removed from the node.
fn verdict(known: Known<'_>, presence: &Presence, node: Option<&Node>) -> Verdict {
    let Presence::Present(found) = presence else {
        return if is_gone(known, presence) { Verdict::Deleted } else { Verdict::Keep };
    };
    if found.metadata.deletion_timestamp.is_some() {
        return Verdict::Deleted;
    }
    // Another of the name counts like the agent's own: if its pods belong here, it takes over.
    let pod = found.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    match (node, pod) {
        (Some(node), Some(pod)) if !placement::belongs(node, pod) => Verdict::Left,
        _ => Verdict::Keep,
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
