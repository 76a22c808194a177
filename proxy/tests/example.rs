//! `examples/hbone.rs` as two processes with a real controller, in a user namespace without capabilities:
//! what needs no root must not have it here.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: cart}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-web, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
";

/// Processes in a network of their own: nothing in it but loopback, which has the pods' addresses.
struct Network(Child);

impl Network {
    fn new(addresses: &[&str]) -> Self {
        let script = addresses.iter().map(|address| format!("ip address add {address}/32 dev lo; "));
        let script = format!("ip link set lo up; {}echo ready; exec cat", script.collect::<String>());
        let child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "sh", "-ec", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut network = Self(child.expect("unshare"));
        assert_eq!(line_of(&mut network.0), "ready");
        network
    }

    /// A command inside, without any capability.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.0.id().to_string(), "--user", "--net", "--"]);
        command.args(["setpriv", "--bounding-set=-all", "--inh-caps=-all"]).arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        stop(&mut self.0);
    }
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        stop(&mut self.0);
    }
}

fn stop(child: &mut Child) {
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
}

/// The next line that a process prints.
fn line_of(child: &mut Child) -> String {
    let mut line = String::new();
    let output = child.stdout.as_mut().expect("its output is taken");
    BufReader::new(output).read_line(&mut line).expect("it prints lines");
    line.trim_end().to_owned()
}

/// Binaries and examples lie beside the tests.
fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test has a file");
    let folder = own.parent().and_then(Path::parent).expect("it lies in deps");
    folder.join(name)
}

fn controller() -> PathBuf {
    let folder = std::env::var_os("AMBIT_BIN_DIR").map(PathBuf::from);
    let file = folder.map_or_else(|| built("controller"), |folder| folder.join("controller"));
    assert!(file.is_file(), "{} is not built: cargo build -p ambit-controller", file.display());
    file
}

fn pod(name: &str, node: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: app, image: x}}]}}\n\
         status: {{phase: Running, podIP: {address}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

fn succeeded(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn tunnel_between_two_processes_without_root() {
    let (web, other, cart) = ("10.1.0.1", "10.1.0.2", "10.2.0.1");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("objects")).expect("a folder");
    let pods = pod("web", "node-a", web) + &pod("other", "node-a", other) + &pod("cart", "node-b", cart);
    fs::write(path("objects/shop.yaml"), OBJECTS.to_owned() + &pods).expect("a file");
    let config = format!(
        "objects: {}\nstate: {}\nlisten: 127.0.0.1:15012\nmetrics: 127.0.0.1:0\nadmin: 127.0.0.1:0\n",
        path("objects").display(),
        path("state").display()
    );
    fs::write(path("controller.yaml"), config).expect("a file");

    let network = Network::new(&[web, other, cart]);
    let controller = |verb: &str| {
        let mut command = network.command(&controller());
        command.arg(verb).arg("--config").arg(path("controller.yaml"));
        command
    };
    for node in ["node-a", "node-b"] {
        let mut bootstrap = controller("bootstrap");
        bootstrap.args(["--node", node, "--address", "127.0.0.1:15012", "--output"]).arg(path(node));
        succeeded(&bootstrap.output().expect("the controller"));
    }
    let _controller = Process(controller("run").stdout(Stdio::null()).spawn().expect("the controller"));

    let example = built("examples/hbone");
    let mut server = network.command(&example);
    server.arg("server").arg(path("node-b")).args(["Kubernetes//Pod/shop/cart", cart]);
    let mut server = Process(server.stdout(Stdio::piped()).spawn().expect("the example"));
    assert_eq!(line_of(&mut server.0), "listening");

    let client = |name: &str, address: &str, destination: &str| {
        let mut command = network.command(&example);
        let uid = format!("Kubernetes//Pod/shop/{name}");
        command.arg("client").arg(path("node-a")).args([&uid, address, destination, "hello"]);
        command.output().expect("the example")
    };
    // The server may know nothing yet, or the controller not run: then once more.
    let start = Instant::now();
    let answer = loop {
        let output = client("web", web, "10.96.0.1:80");
        if output.status.success() || start.elapsed() > DEADLINE {
            break succeeded(&output);
        }
    };
    assert_eq!(answer, "hello\ntunnel closed\n", "by the service's address");
    assert_eq!(succeeded(&client("web", web, "10.2.0.1:8080")), "hello\ntunnel closed\n", "by the pod's");
    let refused = client("other", other, "10.96.0.1:80");
    assert!(!refused.status.success() && refused.stdout.is_empty(), "policy refuses it: {refused:?}");
}
