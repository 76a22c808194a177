//! A cluster: made, used, removed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ambit_harness::within;
use anyhow::{Context, Result, anyhow, ensure};

use crate::control::{self, Part};
use crate::coredns;
use crate::machine::Machine;
use crate::network::{self, done, feed};
use crate::node::Node;
use crate::parts::{self, Parts};
use crate::pki::Pki;
use crate::state::{self, Lock, State};

/// What kind of cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// A name for logs and messages.
    pub name: String,
    /// How many nodes.
    pub nodes: usize,
    /// The folder of everything that belongs to it; removed with it.
    pub state: PathBuf,
    /// Taints that its nodes have from the start: `key=value:Effect`.
    pub taints: Vec<String>,
    /// Whether it lives on when the process that made it ends.
    pub detached: bool,
    /// The folder of the programs it is made of.
    pub parts: PathBuf,
    /// `ambit-cluster-machine`, which comes with this library.
    pub helper: PathBuf,
}

impl Options {
    /// Two nodes that go with this process; the programs are those of the workspace's target folder.
    pub fn new(name: &str, state: impl Into<PathBuf>) -> Self {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
        let binaries = std::env::var_os("AMBIT_BIN_DIR").map_or_else(|| target.join("debug"), PathBuf::from);
        Self {
            name: name.to_owned(),
            nodes: 2,
            state: state.into(),
            taints: Vec::new(),
            detached: false,
            parts: parts::folder(&target),
            helper: binaries.join("ambit-cluster-machine"),
        }
    }
}

/// Generous: it only costs time when something is broken.
const READY: Duration = Duration::from_mins(5);

/// A cluster that is up. Removed when dropped, unless it is detached.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    state: State,
    parts: Parts,
    control: Machine,
    nodes: Vec<Node>,
    kubeconfig: PathBuf,
    /// Whether dropping removes it.
    owned: bool,
    /// Held for as long as this process owns the cluster.
    lock: Option<Lock>,
}

impl Cluster {
    /// The folder with the Gateway API's definitions, which are not installed from the start.
    pub fn gateway_api(&self) -> PathBuf {
        self.parts.gateway_api()
    }

    /// Makes a cluster; what an earlier one in the same folder left is removed first. Ready when this
    /// returns: all nodes, and names.
    pub fn up(options: &Options) -> Result<Self> {
        let parts = parts::parts(&options.parts)?;
        ensure!(parts::on_path("nft").is_some(), "nft is missing: install the package nftables");
        state::clear(&options.state)?;
        std::fs::create_dir_all(&options.state)
            .with_context(|| format!("failed to create {}", options.state.display()))?;
        let folder = options.state.canonicalize()?;
        let lock = Lock::new(&folder)?;
        let helper = options.helper.canonicalize().with_context(|| {
            format!("failed to find {}: `cargo build -p ambit-cluster` builds it", options.helper.display())
        })?;
        let (subnet, claim) = network::claim()?;
        let state = State {
            name: options.name.clone(),
            subnet,
            id: State::new_id(subnet)?,
            nodes: u8::try_from(options.nodes)
                .ok()
                .filter(|nodes| *nodes <= 100)
                .context("too many nodes")?,
            taints: options.taints.clone(),
            detached: options.detached,
            parts: parts.folder().to_path_buf(),
            helper,
        };
        state.write(&folder)?;
        let mut cluster = Self::of(folder, state, parts);
        cluster.owned = true;
        cluster.lock = Some(lock);
        cluster.control.boot()?;
        network::hub(&cluster.control, subnet, &cluster.state.id)?;
        drop(claim);
        cluster.bring_up()?;
        if options.detached {
            cluster.owned = false;
            cluster.lock = None;
        }
        Ok(cluster)
    }

    /// The cluster of this folder, which is up.
    pub fn open(state: &Path) -> Result<Self> {
        let folder = state
            .canonicalize()
            .with_context(|| format!("failed to find a cluster in {}", state.display()))?;
        let state = State::read(&folder)?;
        let parts = parts::parts(&state.parts)?;
        let cluster = Self::of(folder, state, parts);
        cluster.control.pid().context("the cluster is not up")?;
        Ok(cluster)
    }

    /// Removes the cluster of this folder, finished or not.
    pub fn remove(state: &Path) -> Result<()> {
        state::clear(state)
    }

    /// Removes it, and waits until nothing is left.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        state::remove(&self.folder)
    }

    fn of(folder: PathBuf, state: State, parts: Parts) -> Self {
        let (control, nodes) = (state.control(&folder), state.nodes(&folder, &parts));
        let kubeconfig = folder.join("pki/admin.kubeconfig");
        Self { folder, state, parts, control, nodes, kubeconfig, owned: false, lock: None }
    }

    /// Control plane and nodes at the same time, then what needs both.
    fn bring_up(&self) -> Result<()> {
        let pki = Pki::new(&self.pki())?;
        control::certificates(&pki, self.state.subnet)?;
        for node in &self.nodes {
            node.certificates(&pki)?;
        }
        std::thread::scope(|scope| {
            let mut work = vec![scope.spawn(|| self.start_control())];
            for node in &self.nodes {
                work.push(scope.spawn(|| node.install()));
            }
            finish(work)
        })?;
        std::thread::scope(|scope| {
            let mut work = vec![scope.spawn(|| self.apply(&coredns::manifest()))];
            for node in &self.nodes {
                work.push(scope.spawn(|| node.start_kubelet().and_then(|()| node.start_proxy())));
            }
            finish(work)
        })?;
        self.ready()
    }

    fn start_control(&self) -> Result<()> {
        Part::ALL.into_iter().try_for_each(|part| self.start(part))
    }

    /// Waits until all nodes are ready and names are answered.
    pub fn ready(&self) -> Result<()> {
        within(READY, "all nodes have joined", || {
            let names = self.output(&["get", "nodes", "-o", "name"])?;
            ensure!(names.lines().count() == self.nodes.len(), "only {}", names.replace('\n', " "));
            Ok(())
        })?;
        let timeout = format!("--timeout={}s", READY.as_secs());
        self.output(&["wait", "--for=condition=Ready", "node", "--all", &timeout])?;
        let arguments = ["-n", "kube-system", "rollout", "status", "deployment/coredns", &timeout];
        self.output(&arguments).map(drop)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The folder of everything that belongs to the cluster; logs of the programs are in `control/` and
    /// `nodeN/`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn name(&self) -> &str {
        &self.state.name
    }

    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What each machine uses: its name, processor seconds since it was made, bytes of memory.
    pub fn usage(&self) -> Result<Vec<(String, f64, u64)>> {
        let machines = std::iter::once(&self.control).chain(self.nodes.iter().map(|node| &node.machine));
        machines
            .map(|machine| {
                let (seconds, bytes) = machine.usage()?;
                Ok((machine.spec.name.clone(), seconds, bytes))
            })
            .collect()
    }

    /// `kubectl` for this cluster.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.parts.program("kubectl"));
        // Its cache of what the apiserver offers is the cluster's own: another cluster may have had the same
        // address.
        command.env("KUBECONFIG", &self.kubeconfig).env("KUBECACHEDIR", self.folder.join("kubectl"));
        command.args(arguments);
        command
    }

    /// `helm` for this cluster.
    pub fn helm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.parts.program("helm"));
        command.env("KUBECONFIG", &self.kubeconfig);
        for (variable, folder) in
            [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(variable, self.folder.join("helm").join(folder));
        }
        command.args(arguments);
        command
    }

    /// What `kubectl` prints; an error when it fails.
    pub fn output(&self, arguments: &[&str]) -> Result<String> {
        done(&mut self.kubectl(arguments))
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        feed(&mut self.kubectl(&["apply", "-f", "-"]), yaml)
    }

    /// Loads the images of an OCI or docker archive into every node.
    pub fn load(&self, archive: &Path) -> Result<()> {
        std::thread::scope(|scope| {
            finish(self.nodes.iter().map(|node| scope.spawn(|| node.load(archive))).collect())
        })
    }

    /// Ends one program of the control plane.
    pub fn stop(&self, part: Part) -> Result<()> {
        control::stop(&self.control, part)
    }

    /// Starts one program of the control plane; the apiserver answers when this returns.
    pub fn start(&self, part: Part) -> Result<()> {
        control::start(&self.control, &self.parts, &self.pki(), self.state.subnet, part)
    }

    /// Ends all of the control plane and starts it again, as an upgrade of it would.
    pub fn restart_control_plane(&self) -> Result<()> {
        Part::ALL.into_iter().rev().try_for_each(|part| self.stop(part))?;
        self.start_control()
    }

    fn pki(&self) -> PathBuf {
        self.folder.join("pki")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = state::remove(&self.folder)
        {
            eprintln!("{error:#}");
        }
    }
}

/// Waits for all of them; the first error is the error.
fn finish(work: Vec<std::thread::ScopedJoinHandle<'_, Result<()>>>) -> Result<()> {
    let mut outcome = Ok(());
    for thread in work {
        let result = thread.join().unwrap_or_else(|_| Err(anyhow!("a thread has panicked")));
        outcome = outcome.and(result);
    }
    outcome
}
