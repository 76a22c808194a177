//! A real cluster with the mesh installed by its chart: [`Mesh`].
//!
//! The images and the chart are those that users get; `cargo xtask test` builds the images first
//! (`AMBIT_IMAGES`).

pub mod api;
pub mod ca;
pub mod cli;
pub mod manifests;
pub mod remains;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ambit_cluster::{Cluster, Node, Options};
use ambit_harness::{Metrics, Netns};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The namespace that Ambit is installed in.
pub const SYSTEM: &str = "ambit-system";
/// Puts a namespace into the mesh.
pub const ENROLLED: &str = "istio.io/dataplane-mode=ambient";
/// What the node says of a pod that is in the mesh.
pub const ANNOTATION: &str = "ambient.istio.io/redirection";
/// Generous: it only costs time when something is broken.
pub const DEADLINE: Duration = Duration::from_mins(3);

/// A cluster, and what is installed in it.
#[derive(Debug)]
pub struct Mesh {
    pub cluster: Cluster,
    _folder: tempfile::TempDir,
}

impl Mesh {
    /// A cluster with the images loaded, and nothing of the mesh installed.
    pub fn prepare(name: &str) -> Result<Self> {
        Self::prepare_tainted(name, &[])
    }

    /// [`Mesh::prepare`] with taints that nodes have from the start.
    pub fn prepare_tainted(name: &str, taints: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ambit-kubernetes-").tempdir()?;
        let mut options = Options::new(name, folder.path().join("cluster"));
        options.taints = taints.iter().map(|taint| (*taint).to_owned()).collect();
        let mesh = Self { cluster: Cluster::up(&options)?, _folder: folder };
        for image in ["controller", "ztunnel", "cni", "tests"] {
            mesh.load(image)?;
        }
        Ok(mesh)
    }

    /// Loads one of the images into every node.
    pub fn load(&self, image: &str) -> Result<()> {
        self.cluster.load(&images()?.join(format!("{image}.tar")))
    }

    /// [`Mesh::prepare`], then installed.
    pub fn up(name: &str) -> Result<Self> {
        let mesh = Self::prepare(name)?;
        mesh.install(&[])?;
        Ok(mesh)
    }

    /// Installs (or upgrades) by the chart and waits until all is ready: how long it took.
    pub fn install(&self, settings: &[&str]) -> Result<Duration> {
        let began = Instant::now();
        if let Err(error) = self.upgrade(settings, &["--wait", "--timeout", "5m"]) {
            bail!("{error:#}\n{}", self.story());
        }
        Ok(began.elapsed())
    }

    /// Installs (or upgrades) by the chart, with these flags of Helm's.
    pub fn upgrade(&self, settings: &[&str], flags: &[&str]) -> Result<()> {
        let chart = workspace().join("deploy/chart");
        let mut arguments = vec!["upgrade", "--install", "ambit", chart.to_str().context("a path in UTF-8")?];
        arguments.extend(["--namespace", SYSTEM, "--create-namespace"]);
        arguments.extend(flags);
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        run(&mut self.cluster.helm(&arguments)).map(drop)
    }

    /// What `kubectl` prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.cluster.kubectl(arguments))
    }

    /// A merge patch with a token, and no other request: kubectl would read the object first.
    pub fn patch(&self, token: &str, path: &str, patch: &str) -> Result<String> {
        let config: Value = serde_json::from_str(&self.kubectl(&["config", "view", "--raw", "-o", "json"])?)?;
        let server =
            config["clusters"][0]["cluster"]["server"].as_str().context("a kubeconfig without a server")?;
        let bearer = format!("authorization: Bearer {token}");
        let url = format!("{server}{path}");
        let arguments = [
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--insecure",
            "--request",
            "PATCH",
            "--header",
            &bearer,
        ];
        let rest = ["--header", "content-type: application/merge-patch+json", "--data", patch, &url];
        run(Command::new("curl").args(arguments).args(rest))
    }

    /// An object, as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [&["get", "-o", "json"], arguments].concat();
        Ok(serde_json::from_str(&self.kubectl(&arguments)?)?)
    }

    /// The pods that a selector finds, as JSON.
    pub fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let list = self.get(&["pods", "-n", namespace, "-l", selector])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// The one ready pod that a selector finds, on the node if one is named.
    pub fn pod(&self, namespace: &str, selector: &str, node: Option<&str>) -> Result<Pod> {
        let pods = self.pods(namespace, selector)?;
        let fits = |pod: &&Value| {
            pod["metadata"]["deletionTimestamp"].is_null()
                && pod["status"]["podIP"].is_string()
                && node.is_none_or(|node| pod["spec"]["nodeName"] == node)
        };
        let pod = pods.iter().find(fits).with_context(|| format!("no pod {selector} in {namespace}"))?;
        Pod::read(pod)
    }

    /// Waits until every replica of these is ready: `deployment/web`, …
    pub fn rolled_out(&self, namespace: &str, objects: &[&str]) -> Result<()> {
        let timeout = format!("--timeout={}s", DEADLINE.as_secs());
        for object in objects {
            if let Err(error) = self.kubectl(&["-n", namespace, "rollout", "status", object, &timeout]) {
                bail!("{error:#}\n{}", self.story());
            }
        }
        Ok(())
    }

    /// Waits until all running pods of a namespace are in the mesh, or none is.
    pub fn enrolled(&self, namespace: &str, yes: bool) -> Result<()> {
        ambit_harness::within(DEADLINE, "pods are annotated", || {
            let list = self.get(&["pods", "-n", namespace, "--field-selector", "status.phase=Running"])?;
            let pods = list["items"].as_array().cloned().unwrap_or_default();
            ensure!(!pods.is_empty(), "no pods in {namespace}");
            for pod in pods {
                let said = pod["metadata"]["annotations"][ANNOTATION] == "enabled";
                ensure!(said == yes, "{} enrolled: {said}", pod["metadata"]["name"]);
            }
            Ok(())
        })
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.cluster
            .nodes()
            .iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("no node {name}"))
    }

    /// Metrics of the ztunnel on a node.
    pub fn metrics(&self, node: &str) -> Result<Metrics> {
        let pod = self.pod(SYSTEM, "app.kubernetes.io/name=ztunnel", Some(node))?;
        let url = format!("http://{}:15020/metrics", pod.address);
        Ok(Metrics::parse(&run(&mut self
            .node(node)?
            .run("curl", &["--silent", "--fail", "--max-time", "10", &url]))?))
    }

    /// How many connections the ztunnels of all nodes have seen with these labels.
    pub fn opened(&self, labels: &[(&str, &str)]) -> Result<f64> {
        let nodes = self.cluster.nodes().iter();
        nodes
            .map(|node| Ok(self.metrics(node.name())?.sum("istio_tcp_connections_opened_total", labels)))
            .sum()
    }

    /// Runs a program of a pod's image in it; what it prints.
    pub fn exec(&self, pod: &Pod, words: &[&str]) -> Result<String> {
        let arguments = [&["exec", "-n", &pod.namespace, &pod.name, "--"], words].concat();
        self.kubectl(&arguments)
    }

    /// Starts a program in a pod that runs until it ends by itself or its guard is dropped.
    pub fn start(&self, pod: &Pod, words: &[&str]) -> Result<Running> {
        let arguments = [&["exec", "-n", &pod.namespace, &pod.name, "--"], words].concat();
        Running::start(self.cluster.kubectl(&arguments))
    }

    /// [`Mesh::start`] by the node's containerd: it goes on while there is no API server.
    pub fn start_on_node(&self, pod: &Pod, words: &[&str]) -> Result<Running> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let id = format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let arguments = [&["tasks", "exec", "--exec-id", &id, &pod.container], words].concat();
        Running::start(self.node(&pod.node)?.ctr(&arguments))
    }

    /// Asks once on a new connection; an error says why there was no answer.
    pub fn ask(&self, pod: &Pod, target: &str) -> Result<()> {
        self.said(pod, target, "1").map(drop)
    }

    /// Asks so many times, each on a new connection: the different answers, sorted.
    pub fn said(&self, pod: &Pod, target: &str, count: &str) -> Result<Vec<String>> {
        let last = self.asked(pod, target, count)?;
        ensure!(last["answered"].as_u64() > Some(0) && last["failed"] == 0, "{last}");
        let answers = last["said"].as_object().context("no answers")?;
        Ok(answers.keys().cloned().collect())
    }

    /// Asks once on a new connection, and is not answered. An error says who answered, or that it could not
    /// be asked at all.
    pub fn unanswered(&self, pod: &Pod, target: &str) -> Result<()> {
        let last = self.asked(pod, target, "1")?;
        ensure!(last["answered"] == 0 && last["failed"].as_u64() > Some(0), "{last}");
        Ok(())
    }

    /// Asks so many times, each on a new connection: the load's own report.
    fn asked(&self, pod: &Pod, target: &str, count: &str) -> Result<Value> {
        let said = self.exec(pod, &["/ambit-load", target, "--count", count, "--timeout", "5"])?;
        Ok(serde_json::from_str(said.lines().last().context("it said nothing")?)?)
    }

    /// Everything that helps to see why something is not ready.
    pub fn story(&self) -> String {
        let words: [&[&str]; 4] = [
            &["get", "pods", "-A", "-o", "wide"],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &[
                "-n",
                SYSTEM,
                "logs",
                "-l",
                "app.kubernetes.io/part-of=ambit",
                "--all-containers",
                "--tail=40",
                "--prefix",
            ],
            &[
                "-n",
                SYSTEM,
                "logs",
                "-l",
                "app.kubernetes.io/part-of=ambit",
                "--all-containers",
                "--tail=20",
                "--prefix",
                "--previous",
            ],
        ];
        words
            .iter()
            .map(|words| self.kubectl(words).unwrap_or_else(|error| format!("{error:#}")))
            .chain([self.readiness().unwrap_or_else(|error| format!("{error:#}"))])
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// What each daemon says of its readiness.
    fn readiness(&self) -> Result<String> {
        let mut said = Vec::new();
        for pod in self.pods(SYSTEM, "app.kubernetes.io/name=ztunnel")? {
            let (node, ip) = (pod["spec"]["nodeName"].as_str(), pod["status"]["podIP"].as_str());
            let (Some(node), Some(ip)) = (node, ip) else { continue };
            let url = format!("http://{ip}:15021/healthz/ready");
            let answer = run(&mut self.node(node)?.run("curl", &["--silent", "--max-time", "5", &url]));
            said.push(format!("{node}: {}", answer.unwrap_or_else(|error| format!("{error:#}"))));
        }
        Ok(said.join("\n"))
    }
}

/// A pod, by what tests need of it.
#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub node: String,
    pub address: String,
    /// Its first container, as containerd names it.
    pub container: String,
}

impl Pod {
    fn read(pod: &Value) -> Result<Self> {
        let word =
            |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("not complete: {pod}"));
        Ok(Self {
            namespace: word(&pod["metadata"]["namespace"])?,
            name: word(&pod["metadata"]["name"])?,
            uid: word(&pod["metadata"]["uid"])?,
            node: word(&pod["spec"]["nodeName"])?,
            address: word(&pod["status"]["podIP"])?,
            container: pod["status"]["containerStatuses"][0]["containerID"]
                .as_str()
                .map(|id| id.trim_start_matches("containerd://").to_owned())
                .unwrap_or_default(),
        })
    }

    /// Its network namespace, through one of its processes.
    pub fn netns(&self) -> Result<Netns> {
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if groups.contains(&format!("pod{}", self.uid)) {
                return Netns::at(&entry.path().join("ns/net"), &self.name);
            }
        }
        bail!("no process of {}/{}", self.namespace, self.name)
    }
}

/// The network of a node: what passes between the nodes passes here.
pub fn node_netns(node: &Node) -> Result<Netns> {
    Netns::at(Path::new(&format!("/proc/{}/ns/net", node.pid()?)), node.name())
}

/// A program that runs in a pod, and the lines it prints.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    fn start(command: Command) -> Result<Self> {
        let mut running = Self::begin(command)?;
        ensure!(running.line()? == "ready", "not ready");
        Ok(running)
    }

    /// Starts a program and leaves what it says to the caller.
    pub fn begin(mut command: Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("failed to start kubectl")?;
        let output = child.stdout.take().context("no output")?;
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The next line it prints.
    pub fn line(&mut self) -> Result<String> {
        self.lines.recv_timeout(DEADLINE).context("failed to read its next line")
    }

    /// Its next report.
    pub fn report(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// Drops what it said until now, then waits for a report that has `more` answers than the one before.
    pub fn answers_again(&mut self) -> Result<()> {
        while self.lines.try_recv().is_ok() {}
        let first = self.report()?;
        let second = self.report()?;
        ensure!(first["failed"] == 0 && second["failed"] == 0, "the connection broke: {second}");
        ensure!(second["answered"].as_u64() > first["answered"].as_u64(), "nothing is answered: {second}");
        Ok(())
    }

    /// Waits for its end: the last thing it said.
    pub fn finish(mut self) -> Result<Value> {
        let mut last = None;
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            last = Some(line);
        }
        self.child.wait()?;
        Ok(serde_json::from_str(&last.context("it said nothing")?)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end: what it prints.
pub fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("failed to start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The workspace's root folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where the archives of the images are.
fn images() -> Result<PathBuf> {
    let folder = std::env::var_os("AMBIT_IMAGES").map(PathBuf::from);
    let folder =
        folder.context("AMBIT_IMAGES is not set: `cargo xtask test` builds the images and sets it")?;
    ensure!(
        folder.join("ztunnel.tar").exists(),
        "no images in {}: `cargo xtask image --tests` writes them",
        folder.display()
    );
    Ok(folder)
}
