//! Building a lab: what it will consist of, and in which order it is made.
//!
//! Entry point: [`crate::Lab::builder`].

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::daemon::Daemon;
use crate::janitor::{self, Janitor};
use crate::lab::{Lab, XDS};
use crate::netns::Netns;
use crate::network::Layout;
use crate::node::Node;
use crate::pod::Place;
use crate::spec::{NamespaceSpec, PodSpec, ServiceSpec};
use crate::{network, report};

/// What a lab will consist of.
#[derive(Debug)]
pub struct Builder {
    nodes: usize,
    layout: Layout,
    mesh: bool,
    certificate_ttl: Duration,
    drain_timeout: Duration,
    log_filter: String,
    workers: usize,
    daemon_config: String,
    binaries: Option<PathBuf>,
    namespaces: Vec<NamespaceSpec>,
    pods: Vec<PodSpec>,
    services: Vec<ServiceSpec>,
    objects: Vec<(String, String)>,
}

impl Lab {
    /// Two nodes with a mesh, no pods yet.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl Builder {
    fn new() -> Self {
        Self {
            nodes: 2,
            layout: Layout::default(),
            mesh: true,
            certificate_ttl: Duration::from_hours(24),
            drain_timeout: Duration::from_secs(5),
            log_filter: "info".to_owned(),
            workers: 2,
            daemon_config: String::new(),
            binaries: None,
            namespaces: Vec::new(),
            pods: Vec::new(),
            services: Vec::new(),
            objects: Vec::new(),
        }
    }

    /// How many nodes; two by default.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// How the pods are connected to their node; by a bridge if nothing else is said.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// The same network and pods without controller and daemons.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.mesh = false;
        self
    }

    /// How many worker threads each ztunnel has; two by default.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Adds lines to the configuration of every ztunnel.
    #[must_use]
    pub fn daemon_config(mut self, yaml: &str) -> Self {
        self.daemon_config.push_str(yaml.trim_end());
        self.daemon_config.push('\n');
        self
    }

    /// Where the programs are, other than where `AMBIT_BIN_DIR` says.
    #[must_use]
    pub fn binaries(mut self, folder: &Path) -> Self {
        self.binaries = Some(folder.to_owned());
        self
    }

    /// How long workload certificates live.
    #[must_use]
    pub fn certificate_ttl(mut self, ttl: Duration) -> Self {
        self.certificate_ttl = ttl;
        self
    }

    /// How long a daemon that was asked to end waits for its connections.
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// What the daemons log (a tracing filter).
    #[must_use]
    pub fn log(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.log_filter);
        self
    }

    /// Adds a namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: NamespaceSpec) -> Self {
        self.namespaces.push(namespace);
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Adds a service.
    #[must_use]
    pub fn service(mut self, service: ServiceSpec) -> Self {
        self.services.push(service);
        self
    }

    /// Adds any other object: a file name and its YAML.
    #[must_use]
    pub fn object(mut self, name: &str, yaml: &str) -> Self {
        self.objects.push((name.to_owned(), yaml.to_owned()));
        self
    }

    /// Builds it all and waits until the mesh stands: daemons ready, pods enrolled, every daemon knows every
    /// pod and service.
    pub fn start(self) -> Result<Lab> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a lab needs root: it makes network namespaces and loads eBPF programs"
        );
        report::install();
        janitor::sweep(false)?;
        let lab = lay_out(self)?;
        if lab.mesh {
            start_mesh(&lab).with_context(|| lab.report(40))?;
        }
        Ok(lab)
    }
}

fn lay_out(builder: Builder) -> Result<Lab> {
    let bin = builder.binaries.clone().map_or_else(binaries, Ok)?;
    let prefix = format!("ambit-{:04x}", rand::random::<u16>());
    let janitor = Janitor::new(&prefix, &bin)?;
    let dir = janitor.dir.clone();
    for folder in ["objects", "state", "bpffs"] {
        std::fs::create_dir(dir.join(folder))?;
    }
    mount_bpffs(&dir.join("bpffs"))?;
    let underlay = network::underlay(&format!("{prefix}-underlay"))?;
    let control = network::control(&underlay, &format!("{prefix}-control"), builder.nodes)?;
    let outside = network::outside(&underlay, &format!("{prefix}-outside"), builder.nodes)?;
    let outside = Place::new(&dir, &bin, outside, network::OUTSIDE, network::OUTSIDE_V6);
    let controller_yaml = dir.join("controller.yaml");
    std::fs::write(&controller_yaml, controller_config(&dir, &builder.log_filter))?;
    let controller = Daemon::new(
        "controller",
        &control,
        bin.join("controller"),
        controller_yaml,
        dir.join("controller.log"),
    );
    let nodes = (0..builder.nodes).map(|index| node(&builder, &prefix, &dir, &bin, &underlay, index));
    let lab = Lab {
        nodes: nodes.collect::<Result<_>>()?,
        mesh: builder.mesh,
        layout: builder.layout,
        pods: RwLock::default(),
        services: RwLock::default(),
        namespaces: RwLock::new(builder.namespaces),
        per_node: Mutex::new(vec![0; builder.nodes]),
        prefix,
        underlay,
        outside,
        controller,
        control,
        janitor,
        bin,
    };
    for namespace in lab.namespaces.read().unwrap_or_else(PoisonError::into_inner).iter() {
        lab.apply(&format!("namespace-{}", namespace.name), &namespace.yaml())?;
    }
    for service in builder.services {
        lab.add_service(service)?;
    }
    for pod in builder.pods {
        lab.add_pod(pod)?;
    }
    for (name, yaml) in builder.objects {
        lab.apply(&name, &yaml)?;
    }
    Ok(lab)
}

fn start_mesh(lab: &Lab) -> Result<()> {
    for node in &lab.nodes {
        let mut bootstrap = lab.controller.command("bootstrap");
        bootstrap.args(["--node", &node.name, "--address", &format!("{}:{XDS}", network::CONTROL)]);
        bootstrap.arg("--output").arg(node.dir.join("bootstrap.yaml"));
        let output = bootstrap.output().context("failed to run controller bootstrap")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "controller bootstrap: {}: {said}", output.status);
    }
    lab.start_controller()?;
    std::thread::scope(|scope| {
        let starts: Vec<_> = lab.nodes.iter().map(|node| scope.spawn(|| node.start())).collect();
        starts
            .into_iter()
            .try_for_each(|start| start.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    lab.settled()
}

fn node(
    builder: &Builder,
    prefix: &str,
    dir: &Path,
    bin: &Path,
    underlay: &Netns,
    index: usize,
) -> Result<Node> {
    let name = format!("node{index}");
    let (files, bpffs) = (dir.join(&name), dir.join("bpffs"));
    std::fs::create_dir(&files)?;
    std::fs::create_dir(files.join("run"))?;
    let netns = network::node(underlay, &format!("{prefix}-{name}"), index, builder.nodes, builder.layout)?;
    let instance = format!("{prefix}-{name}");
    let config = files.join("ztunnel.yaml");
    let mut text = format!(
        "instance: {instance}\nnode: {name}\nbootstrap: {}\nrun_dir: {}\nbpffs: {}\n",
        files.join("bootstrap.yaml").display(),
        files.join("run").display(),
        bpffs.display()
    );
    let _ = write!(
        text,
        "workers: {}\ncertificate_ttl_seconds: {}\ndrain_timeout_seconds: {}\nlog:\n  format: json\n  \
         filter: \"{}\"\n",
        builder.workers,
        builder.certificate_ttl.as_secs(),
        builder.drain_timeout.as_secs(),
        builder.log_filter
    );
    text.push_str(&builder.daemon_config);
    if builder.mesh {
        std::fs::write(&config, text)?;
    }
    Ok(Node {
        place: Place::new(dir, bin, netns.clone(), network::node_v4(index), network::node_v6(index)),
        ztunnel: Daemon::new(
            &format!("ztunnel on {name}"),
            &netns,
            bin.join("ztunnel"),
            config,
            dir.join(format!("{name}.log")),
        ),
        name,
        instance,
        dir: files,
        bpffs,
        enrolled: Mutex::default(),
        enrolment: Mutex::default(),
    })
}

fn controller_config(dir: &Path, filter: &str) -> String {
    format!(
        "objects: {0}/objects\nstate: {0}/state\nlog:\n  format: json\n  filter: \"{filter}\"\n",
        dir.display()
    )
}

/// Where the programs under test are: `AMBIT_BIN_DIR`, or the workspace's debug build.
pub fn binaries() -> Result<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug");
    let dir = std::env::var_os("AMBIT_BIN_DIR").map_or_else(default, PathBuf::from);
    dir.canonicalize()
        .with_context(|| format!("failed to find programs in {}: set AMBIT_BIN_DIR", dir.display()))
}

fn mount_bpffs(dir: &Path) -> Result<()> {
    let none: Option<&str> = None;
    nix::mount::mount(Some("bpffs"), dir, Some("bpf"), nix::mount::MsFlags::empty(), none)
        .with_context(|| format!("failed to mount bpffs on {}", dir.display()))?;
    // A lab's pins do not show in other mount namespaces.
    nix::mount::mount(none, dir, none, nix::mount::MsFlags::MS_PRIVATE, none)
        .context("failed to make the mount private")
}
