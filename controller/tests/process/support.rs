//! A controller as a process, and a daemon that talks to it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ambit_core::mesh::{Change, Mesh};
use ambit_daemon_kit::bootstrap::Bootstrap;
use ambit_xds::client::{self, Connection, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::sync::watch;

/// Generous, for busy machines.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for a state; fails with the last one seen.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(start.elapsed() < DEADLINE, "waiting for {what}: {seen}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A folder with a configuration, objects and state.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(place.path("objects")).unwrap();
        place.configure("");
        place
    }

    /// With the objects of [`shop`].
    pub(crate) fn with_shop() -> Self {
        let place = Self::new();
        place.write("shop.yaml", &shop());
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the configuration: every port free, and `more`.
    pub(crate) fn configure(&self, more: &str) {
        let text = format!(
            "objects: {}\nstate: {}\nmetrics: 127.0.0.1:0\nadmin: 127.0.0.1:0\n{}{more}",
            self.path("objects").display(),
            self.path("state").display(),
            if more.contains("listen:") { "" } else { "listen: 127.0.0.1:0\n" },
        );
        fs::write(self.path("controller.yaml"), text).unwrap();
    }

    /// Writes an object file as an editor does: in place.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path("objects").join(name), text).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path("objects").join(name)).unwrap();
    }

    pub(crate) fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_controller"));
        command.arg(verb).arg("--config").arg(self.path("controller.yaml"));
        command
    }

    /// Runs `controller bootstrap` for a node.
    pub(crate) fn bootstrap(&self, node: &str, address: &str) -> Output {
        let file = self.path(&format!("{node}.yaml"));
        let mut command = self.command("bootstrap");
        command.args(["--node", node, "--address", address, "--output"]).arg(file);
        command.output().unwrap()
    }

    /// A node's bootstrap file, read as the daemon reads it.
    pub(crate) fn joined(&self, node: &str, address: SocketAddr) -> Bootstrap {
        let output = self.bootstrap(node, &address.to_string());
        assert!(output.status.success(), "{output:?}");
        Bootstrap::read(&self.path(&format!("{node}.yaml"))).unwrap()
    }

    /// The daemon of node-a, connected to the controller.
    pub(crate) fn daemon(&self, controller: &Controller) -> Daemon {
        Daemon::connect(connection(&self.joined("node-a", controller.xds)))
    }

    pub(crate) fn start(&self) -> Controller {
        Controller::start(self)
    }
}

/// A running controller.
pub(crate) struct Controller {
    child: Child,
    log: PathBuf,
    pub(crate) xds: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

impl Controller {
    fn start(place: &Place) -> Self {
        let log = place.path("log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let errors = file.try_clone().unwrap();
        let mut child =
            place.command("run").stdin(Stdio::null()).stdout(file).stderr(errors).spawn().unwrap();
        let addresses = place.path("state/addresses.json");
        let pid = child.id();
        let found: Value = wait_for("the controller to run", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("controller {pid} ended: {status}\n{}", fs::read_to_string(&log).unwrap());
            }
            let text = fs::read_to_string(&addresses).map_err(|error| error.to_string())?;
            serde_json::from_str(&text).map_err(|error| error.to_string())
        });
        let address = |name: &str| found[name].as_str().unwrap().parse().unwrap();
        Self { child, log, xds: address("xds"), admin: address("admin"), metrics: address("metrics") }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Sends SIGTERM; the exit status.
    pub(crate) fn terminate(mut self) -> std::process::ExitStatus {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        wait_for("the controller to end", || {
            self.child.try_wait().unwrap().ok_or_else(|| fs::read_to_string(&self.log).unwrap())
        })
    }

    pub(crate) fn debug(&self) -> Value {
        serde_json::from_str(&http_get(self.admin, "/debug")).unwrap()
    }

    /// A sample of the metrics page.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let page = http_get(self.metrics, "/metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        Some(line.parse().unwrap())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It has ended already in tests that end it.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The body of a page.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    body.to_owned()
}

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// How a daemon reaches the controller.
pub(crate) fn connection(bootstrap: &Bootstrap) -> Connection {
    Connection {
        endpoint: format!("https://{}", bootstrap.controller),
        server_name: bootstrap.server_name.clone(),
        root_pem: bootstrap.root.clone(),
        token: bootstrap.token.reveal().to_owned(),
        node: bootstrap.node.clone(),
    }
}

/// A daemon's view of the mesh, kept by a real client.
pub(crate) struct Daemon {
    runtime: tokio::runtime::Runtime,
    view: Arc<Mutex<View>>,
    pub(crate) status: watch::Receiver<Status>,
}

#[derive(Default)]
struct View {
    mesh: Mesh,
    changes: Vec<Change>,
}

impl Daemon {
    pub(crate) fn connect(connection: Connection) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (sender, status) = watch::channel(Status::default());
        let view: Arc<Mutex<View>> = Arc::default();
        let shared = view.clone();
        runtime.spawn(client::run(connection, sender, move |update| {
            let mut view = shared.lock().unwrap();
            view.changes.extend(update.changes.iter().cloned());
            view.mesh.apply(update.changes);
            Vec::new()
        }));
        Self { runtime, view, status }
    }

    pub(crate) fn mesh(&self) -> Mesh {
        self.view.lock().unwrap().mesh.clone()
    }

    /// The changes received since the last call.
    pub(crate) fn received(&self) -> Vec<Change> {
        std::mem::take(&mut self.view.lock().unwrap().changes)
    }

    pub(crate) fn wait_synced(&self) {
        wait_for("the daemon to be synced", || {
            let status = self.status.borrow().clone();
            if status.connected && status.synced { Ok(()) } else { Err(format!("{status:?}")) }
        });
    }

    /// Waits until the mesh's outline is this.
    fn wait_outline(&self, expected: &[&str]) {
        wait_for("the mesh to be as expected", || {
            let outline = outline(&self.mesh());
            if outline == expected { Ok(()) } else { Err(format!("{outline:?}")) }
        });
    }

    /// Waits until the daemon has the objects of [`shop`] and these policies, as in [`outline`].
    pub(crate) fn wait_policies(&self, policies: &[&str]) {
        self.wait_outline(&[&SHOP, policies].concat());
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

/// The uids of workloads, the keys of services, and the policies with their number of rules.
pub(crate) fn outline(mesh: &Mesh) -> Vec<String> {
    let workloads = mesh.workloads().map(|workload| workload.uid.to_string());
    let services = mesh.services().map(|service| service.key.to_string());
    let policies = mesh.policies().map(|policy| format!("{}: {} rules", policy.key, policy.rules.len()));
    workloads.chain(services).chain(policies).collect()
}

/// A pod of the namespace `shop`, running and ready on a node.
pub(crate) fn pod(name: &str, node: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: app, image: x}}]}}\n\
         status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n---\n"
    )
}

/// The outline of [`shop`].
const SHOP: [&str; 3] =
    ["Kubernetes//Pod/shop/db", "Kubernetes//Pod/shop/web", "shop/db.shop.svc.cluster.local"];

/// An enrolled namespace `shop` with web on node-a and db on node-b.
pub(crate) fn shop() -> String {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: \
                     {istio.io/dataplane-mode: ambient}}\n---\n";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: \
                   10.96.0.1, selector: {app: db}, ports: [{port: 5432}]}\n---\n";
    format!("{namespace}{service}{}{}", pod("web", "node-a", "10.1.0.1"), pod("db", "node-b", "10.2.0.1"))
}

/// A policy of the namespace `shop` with this many rules.
pub(crate) fn policy(name: &str, rules: usize) -> String {
    let rule = "  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]\n";
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: \
         shop}}\nspec:\n  selector: {{matchLabels: {{app: db}}}}\n  rules:\n{}---\n",
        rule.repeat(rules)
    )
}

/// Runs a program that must succeed; returns its output.
pub(crate) fn output(program: &str, arguments: &[&str], folder: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}
