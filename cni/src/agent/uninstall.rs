//! Whether Ambit leaves this node, and how: the agent's own DaemonSet is gone, so everything that was left on
//! the node to outlive a restart goes as well. A restart, an upgrade, an eviction or an API server that
//! cannot be asked is none.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;

use super::installer::{self, Layout};
use super::{files, telemetry};
use crate::chain;

/// In the run folder: the DaemonSet whose existence this node's agents have seen. One that nobody ever saw (a
/// name mistyped in a configuration) cannot have been deleted.
const WITNESS: &str = "daemon-set";
/// For the last question.
const PATIENCE: Duration = Duration::from_secs(2);

/// The agent's own DaemonSet.
pub(crate) struct Owner {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) run_dir: PathBuf,
}

/// What the API server says of the DaemonSet.
enum Fate {
    Stays,
    Leaves,
    Gone,
    Unknown,
}

impl Owner {
    /// Resolves when the DaemonSet is being deleted, or is gone.
    pub(crate) async fn deleted(&self, leaving: &watch::Sender<bool>) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut watched = std::pin::pin!(watcher(self.api(), only).default_backoff());
        let mut there = false;
        while let Some(event) = futures::StreamExt::next(&mut watched).await {
            let gone = match event {
                Ok(Event::Apply(owner) | Event::InitApply(owner)) => {
                    there = true;
                    self.witness(&owner);
                    owner.metadata.deletion_timestamp.is_some()
                }
                // Proof enough: whoever uninstalls takes our rights away a moment later, and a question would
                // be refused.
                Ok(Event::Delete(_)) => !matches!(self.ask().await, Fate::Stays),
                Ok(Event::Init) => {
                    there = false;
                    false
                }
                // Asked once more: a list without it does not prove anything.
                Ok(Event::InitDone) => !there && self.is_deleted().await,
                Err(error) => {
                    telemetry::API_ERRORS.count();
                    tracing::warn!(error = chain(&error), "watching the agent's DaemonSet");
                    false
                }
            };
            if gone {
                tracing::info!(name = self.name, "the DaemonSet is deleted: Ambit leaves this node");
                // The receiver lives as long as the agent.
                _ = leaving.send(true);
                return;
            }
        }
    }

    /// Whether it is deleted, as the API server says now. No answer, or a refusal, is not one.
    pub(crate) async fn is_deleted(&self) -> bool {
        match self.ask().await {
            Fate::Leaves => true,
            Fate::Gone => self.was_seen(),
            Fate::Stays | Fate::Unknown => false,
        }
    }

    async fn ask(&self) -> Fate {
        let api = self.api();
        match tokio::time::timeout(PATIENCE, api.get_opt(&self.name)).await {
            Ok(Ok(Some(owner))) if owner.metadata.deletion_timestamp.is_some() => Fate::Leaves,
            Ok(Ok(Some(_))) => Fate::Stays,
            Ok(Ok(None)) => Fate::Gone,
            Ok(Err(error)) => {
                tracing::info!(error = chain(&error), "whether the DaemonSet still is cannot be asked");
                Fate::Unknown
            }
            Err(_elapsed) => Fate::Unknown,
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
            tracing::warn!(%error, uid = owner.uid(), "noting the agent's DaemonSet");
        }
    }

    fn was_seen(&self) -> bool {
        std::fs::read(self.run_dir.join(WITNESS)).is_ok_and(|name| name == self.full_name().as_bytes())
    }

    fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What Ambit leaves on a node.
#[derive(Clone, Debug)]
pub(crate) struct Traces {
    pub(crate) layout: Layout,
    /// The instance's folder in the BPF file system. Programs whose links are pinned there are detached with
    /// them.
    pub(crate) pins: PathBuf,
    pub(crate) run_dir: PathBuf,
    /// The run folder on the host, for what a container cannot remove from within: the folder that is
    /// mounted into it.
    pub(crate) outside: PathBuf,
}

impl Traces {
    /// Removes everything. Goes on where something fails, and says what did.
    pub(crate) fn remove(&self) -> Vec<String> {
        let mut problems: Vec<String> =
            installer::remove(&self.layout).iter().map(|error| chain(error)).collect();
        let mut check = |path: &Path, result: io::Result<()>| {
            if let Err(error) = result
                && error.kind() != io::ErrorKind::NotFound
            {
                problems.push(format!("removing {}: {error}", path.display()));
            }
        };
        check(&self.pins, std::fs::remove_dir_all(&self.pins));
        check(&self.run_dir, empty(&self.run_dir));
        if let Err(error) = std::fs::remove_dir(&self.run_dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            // It is a mount in this container.
            check(&self.outside, std::fs::remove_dir(&self.outside));
        }
        problems
    }
}

/// Removes what is in a folder.
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
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::agent::installer::Installation;
    use crate::entry::{Entry, PLUGIN};

    const LIST: &str = "{\"name\":\"lab\",\"plugins\":[{\"type\":\"bridge\"}]}";

    /// Every file and folder below one, by its path.
    fn tree(folder: &Path) -> BTreeSet<PathBuf> {
        let mut all = BTreeSet::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                all.extend(tree(&path));
            }
            all.insert(path);
        }
        all
    }

    #[test]
    fn nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for folder in ["bin", "conf", "bpf", "run", "image"] {
            fs::create_dir(path(folder)).unwrap();
        }
        fs::write(path("image/ambit-cni"), "binary").unwrap();
        fs::write(path("bin/bridge"), "another's").unwrap();
        fs::write(path("conf/10-lab.conflist"), LIST).unwrap();
        fs::write(path("bpf/another's"), "").unwrap();
        let before = tree(root.path());

        let layout = Layout { source: path("image/ambit-cni"), bin_dir: path("bin"), conf_dir: path("conf") };
        let entry = Entry {
            kind: PLUGIN.to_owned(),
            kubeconfig: "/etc/cni/net.d/ambit-cni.kubeconfig".into(),
            socket: "/run/ambit/enrol.sock".into(),
            cluster: "c".to_owned(),
            excluded_namespaces: Vec::new(),
            log_file: None,
            wraps_conf: false,
        };
        let credential = Some("credential".to_owned());
        Installation { layout: layout.clone(), entry, credential }.pass().unwrap();
        fs::create_dir_all(path("bpf/ambit/v7/links")).unwrap();
        fs::write(path("bpf/ambit/v7/links/connect4"), "").unwrap();
        fs::create_dir_all(path("run/ambit/old")).unwrap();
        for file in ["agent.lock", "enrol.sock", "enrolled.json", "ambit-cni.log", "old/x"] {
            fs::write(path("run/ambit").join(file), "").unwrap();
        }
        assert_ne!(tree(root.path()), before);

        let traces = Traces {
            layout,
            pins: path("bpf/ambit"),
            run_dir: path("run/ambit"),
            outside: PathBuf::from("/nowhere"),
        };
        assert_eq!(traces.remove(), Vec::<String>::new());
        assert_eq!(tree(root.path()), before);
        assert_eq!(fs::read_to_string(path("conf/10-lab.conflist")).unwrap(), LIST);
        assert_eq!(traces.remove(), Vec::<String>::new(), "again");
    }

    #[test]
    fn what_cannot_be_removed_is_said_and_the_rest_goes() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("run/ambit")).unwrap();
        fs::write(path("run/ambit/agent.lock"), "").unwrap();
        // A file where a folder should be.
        fs::write(path("bpf"), "").unwrap();
        let layout = Layout { source: path("x"), bin_dir: path("bin"), conf_dir: path("conf") };
        let traces = Traces {
            layout,
            pins: path("bpf/ambit"),
            run_dir: path("run/ambit"),
            outside: PathBuf::from("/nowhere"),
        };
        let problems = traces.remove();
        assert!(problems.iter().any(|problem| problem.contains("listing")), "{problems:?}");
        assert!(problems.iter().any(|problem| problem.contains("bpf/ambit")), "{problems:?}");
        assert!(!path("run/ambit").exists());
    }
}
