//! How the controller scales, against a real API server: 10,000 pods, 1,000 services, 200 daemons' streams.
//!
//! Nodes and pods are objects that nobody runs; the daemons are real xDS clients with real tokens, all in this process. So what is measured
//! is the controller with the API server and 200 clients beside it on the same processors.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ambit_cluster::{Cluster, Options, Part};
use ambit_harness::within;
use ambit_suites::kubernetes::{PATIENCE, SYSTEM, run, workspace};
use ambit_xds::client::{self, Connection, Status};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

const PODS: usize = 10_000;
const SERVICES: usize = 1_000;
const CLIENTS: usize = 200;
const NAMESPACES: usize = 100;
/// Changes that are timed.
const CHANGES: usize = 100;

#[test]
fn ten_thousand_pods() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("ambit-scale-").tempdir()?;
    let mut options = Options::new("scale", folder.path().join("cluster"));
    options.nodes = 1;
    let cluster = Cluster::up(&options)?;
    let api = Api::new(&cluster, folder.path())?;
    // They would take pods and nodes away that nobody runs.
    cluster.apply(&std::fs::read_to_string(crds(folder.path())?)?)?;
    cluster.stop(Part::ControllerManager)?;
    cluster.stop(Part::Scheduler)?;
    cluster.nodes()[0].stop("kubelet")?;
    let began = Instant::now();
    populate(&api)?;
    println!("objects made in {:.1} s", began.elapsed().as_secs_f64());

    let controller = Controller::start(&cluster, folder.path())?;
    println!("controller ready after {:.2} s", controller.ready.as_secs_f64());
    let connections = connections(&cluster, &api, &controller)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let first = runtime.block_on(first_sync(&connections[0]))?;
    println!("first synchronization of one client: {:.3} s", first.as_secs_f64());
    let (resident, peak, cpu) = controller.usage()?;
    println!("controller before the clients: {resident} MB, peak {peak} MB, {cpu:.1} s of processor time");

    let (mut times, all) = runtime.block_on(changes(&connections, &api))?;
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!("{CLIENTS} clients synchronized in {:.1} s", all.as_secs_f64());
    println!(
        "a pod's change to all {CLIENTS} clients: p50 {:.0} ms, p90 {:.0} ms, p99 {:.0} ms, max {:.0} ms",
        at(50),
        at(90),
        at(99),
        at(100)
    );
    let (resident, peak, cpu) = controller.usage()?;
    println!("controller: {resident} MB, peak {peak} MB, {cpu:.1} s of processor time");
    // Far above what is expected of a quiet machine: only what is broken fails here.
    ensure!(first < Duration::from_secs(10) && at(50) < 3000.0 && peak < 1000, "not at this scale");
    drop(controller);
    cluster.down()
}

/// The definitions, as the chart has them.
fn crds(folder: &Path) -> Result<PathBuf> {
    let mut all = String::new();
    for entry in std::fs::read_dir(workspace().join("deploy/crds"))? {
        let _ = writeln!(all, "---\n{}", std::fs::read_to_string(entry?.path())?);
    }
    let path = folder.join("crds.yaml");
    std::fs::write(&path, all)?;
    Ok(path)
}

/// The API server, by curl: many requests at a time.
struct Api {
    server: String,
    folder: PathBuf,
    credentials: [String; 2],
}

impl Api {
    fn new(cluster: &Cluster, folder: &Path) -> Result<Self> {
        let view = run(&mut cluster.kubectl(&["config", "view", "--raw", "-o", "json"]))?;
        let config: Value = serde_json::from_str(&view)?;
        let server = config["clusters"][0]["cluster"]["server"].as_str().context("no server")?.to_owned();
        let user = &config["users"][0]["user"];
        let file = |name: &str| -> Result<String> {
            if let Some(path) = user[name].as_str() {
                return Ok(path.to_owned());
            }
            let data = user[format!("{name}-data")].as_str().with_context(|| format!("no {name}"))?;
            let path = folder.join(name);
            let decoded =
                run(Command::new("bash")
                    .args(["-c", &format!("echo {data} | base64 -d > {}", path.display())]));
            decoded.map(|_| path.display().to_string())
        };
        let credentials = [file("client-certificate")?, file("client-key")?];
        Ok(Self { server, folder: folder.to_owned(), credentials })
    }

    /// Sends them all; every answer goes to a file of its number.
    fn send(&self, requests: &[(&str, String, Value)]) -> Result<Vec<PathBuf>> {
        let answers = self.folder.join("answers");
        std::fs::create_dir_all(&answers)?;
        let mut config = String::new();
        let mut files = Vec::new();
        for (number, (method, path, body)) in requests.iter().enumerate() {
            let answer = answers.join(number.to_string());
            let kind = if *method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
            let body = body.to_string().replace('\\', "\\\\").replace('"', "\\\"");
            let _ = write!(
                config,
                "{}url = \"{}{path}\"\nrequest = {method}\ncert = {}\nkey = {}\ninsecure\nsilent\nshow-error\nfail\nheader = \"content-type: {kind}\"\ndata = \"{body}\"\noutput = {}\n",
                if number == 0 { "" } else { "next\n" },
                self.server,
                self.credentials[0],
                self.credentials[1],
                answer.display()
            );
            files.push(answer);
        }
        let path = self.folder.join("requests");
        std::fs::write(&path, config)?;
        run(Command::new("curl").args(["--parallel", "--parallel-max", "32", "--config"]).arg(&path))?;
        Ok(files)
    }
}

fn namespace(number: usize) -> String {
    format!("n{}", number % NAMESPACES)
}

/// Pods are spread over the clients' nodes.
fn populate(api: &Api) -> Result<()> {
    let post = |path: String, body: Value| ("POST", path, body);
    let space = |name: &str| {
        post(
            "/api/v1/namespaces".to_owned(),
            json!({"metadata": {"name": name, "labels": {"istio.io/dataplane-mode": "ambient"}}}),
        )
    };
    let mut requests: Vec<_> = (0..NAMESPACES).map(|number| space(&namespace(number))).collect();
    requests.push(space(SYSTEM));
    requests.extend(
        (0..CLIENTS).map(|node| {
            post("/api/v1/nodes".to_owned(), json!({"metadata": {"name": format!("sim{node}")}}))
        }),
    );
    api.send(&requests).context("namespaces and nodes")?;

    let account = |space: &str, name: &str| {
        post(format!("/api/v1/namespaces/{space}/serviceaccounts"), json!({"metadata": {"name": name}}))
    };
    let mut requests: Vec<_> = (0..NAMESPACES).map(|number| account(&namespace(number), "default")).collect();
    requests.push(account(SYSTEM, "ztunnel"));
    requests.extend((0..SERVICES).map(|number| {
        let body = json!({"metadata": {"name": format!("s{number}")}, "spec": {"selector": {"app": format!("a{number}")}, "ports": [{"port": 80, "targetPort": 8080}]}});
        post(format!("/api/v1/namespaces/{}/services", namespace(number)), body)
    }));
    api.send(&requests).context("accounts and services")?;

    let pod = |space: &str, name: &str, account: &str, app: &str, node: usize| {
        let body = json!({
            "metadata": {"name": name, "labels": {"app": app}, "annotations": {"ambient.istio.io/redirection": "enabled"}},
            "spec": {"nodeName": format!("sim{node}"), "serviceAccountName": account, "automountServiceAccountToken": false,
                     "containers": [{"name": "c", "image": "none", "ports": [{"containerPort": 8080}]}]},
        });
        post(format!("/api/v1/namespaces/{space}/pods"), body)
    };
    let mut requests: Vec<_> = (0..PODS)
        .map(|number| {
            pod(
                &namespace(number),
                &format!("p{number}"),
                "default",
                &format!("a{}", number % SERVICES),
                number % CLIENTS,
            )
        })
        .collect();
    requests
        .extend((0..CLIENTS).map(|node| pod(SYSTEM, &format!("ztunnel-{node}"), "ztunnel", "ztunnel", node)));
    api.send(&requests).context("pods")?;
    let requests: Vec<_> = (0..PODS).map(|number| status(number, true)).collect();
    api.send(&requests).context("statuses").map(drop)
}

/// A pod that runs, and is ready or not.
fn status(number: usize, ready: bool) -> (&'static str, String, Value) {
    let address = format!("10.{}.{}.{}", 64 + number / 62_500, number / 250 % 250, number % 250 + 1);
    let body = json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
    }});
    ("PATCH", format!("/api/v1/namespaces/{}/pods/p{number}/status", namespace(number)), body)
}

/// The controller as a process of its own.
struct Controller {
    child: Child,
    address: String,
    ready: Duration,
}

impl Controller {
    fn start(cluster: &Cluster, folder: &Path) -> Result<Self> {
        let free = || -> Result<String> { Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string()) };
        let (listen, metrics, readiness, admin) = (free()?, free()?, free()?, free()?);
        let config = folder.join("controller.yaml");
        std::fs::write(
            &config,
            format!(
                "kubernetes: {{kubeconfig: {}, namespace: {SYSTEM}, pod_name: scale}}\nlisten: {listen}\nmetrics: {metrics}\nreadiness: {readiness}\nadmin: {admin}\n",
                cluster.kubeconfig().display()
            ),
        )?;
        let programs =
            std::env::var_os("AMBIT_BIN_DIR").map(PathBuf::from).context("AMBIT_BIN_DIR is not set")?;
        let log = std::fs::File::create(folder.join("controller.log"))?;
        let mut command = Command::new(programs.join("controller"));
        command
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let began = Instant::now();
        let mut controller = Self { child: command.spawn()?, address: listen, ready: Duration::ZERO };
        let url = format!("http://{readiness}/healthz/ready");
        within(PATIENCE, "the controller is ready", || {
            run(Command::new("curl").args(["--silent", "--fail", &url])).map(drop)
        })
        .with_context(|| std::fs::read_to_string(folder.join("controller.log")).unwrap_or_default())?;
        controller.ready = began.elapsed();
        Ok(controller)
    }

    /// Resident and peak memory in MB, processor time in seconds.
    fn usage(&self) -> Result<(u64, u64, f64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
            let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
            Ok(kilobytes * 1024 / 1_000_000)
        };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().context("no stat")?.split(' ').collect();
        let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
        Ok((field("VmRSS:")?, field("VmHWM:")?, f64::from(ticks) / 100.0))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One way to the controller for each simulated node, with a token that is bound to its daemon's pod.
fn connections(cluster: &Cluster, api: &Api, controller: &Controller) -> Result<Vec<Connection>> {
    let root = run(&mut cluster.kubectl(&[
        "-n",
        SYSTEM,
        "get",
        "configmap",
        "ambit-root",
        "-o",
        "jsonpath={.data.root\\.pem}",
    ]))?;
    let requests: Vec<_> = (0..CLIENTS)
        .map(|node| {
            let pod = json!({"kind": "Pod", "apiVersion": "v1", "name": format!("ztunnel-{node}")});
            let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["ambit-ca"], "boundObjectRef": pod}});
            ("POST", format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/ztunnel/token"), body)
        })
        .collect();
    let answers = api.send(&requests).context("tokens")?;
    answers
        .iter()
        .enumerate()
        .map(|(node, answer)| {
            let answer: Value = serde_json::from_slice(&std::fs::read(answer)?)?;
            Ok(Connection {
                endpoint: format!("https://{}", controller.address),
                server_name: format!("ambit-controller.{SYSTEM}.svc"),
                root_pem: root.clone(),
                token: answer["status"]["token"].as_str().context("no token")?.to_owned(),
                node: format!("sim{node}"),
            })
        })
        .collect()
}

/// One client from connecting to having everything.
async fn first_sync(connection: &Connection) -> Result<Duration> {
    let began = Instant::now();
    let (status, mut watched) = watch::channel(Status::default());
    let received = Arc::new(AtomicUsize::new(0));
    let count = received.clone();
    let on_update = move |update: client::Update| {
        count.fetch_add(update.changes.len(), Ordering::Relaxed);
        Vec::new()
    };
    tokio::select! {
        ended = client::run(connection.clone(), status, on_update) => anyhow::bail!("the client ended: {ended:?}"),
        synced = watched.wait_for(|status| status.synced) => { synced?; }
        () = tokio::time::sleep(PATIENCE) => anyhow::bail!("not synchronized"),
    }
    let received = received.load(Ordering::Relaxed);
    ensure!(received >= PODS + SERVICES, "only {received} resources");
    Ok(began.elapsed())
}

/// All clients at a time; then changes, one after the other: from sending it to the API server until the last client has it.
async fn changes(connections: &[Connection], api: &Api) -> Result<(Vec<Duration>, Duration)> {
    let began = Instant::now();
    let (told, mut heard) = mpsc::unbounded_channel();
    let mut synced = Vec::new();
    for connection in connections {
        let (status, watched) = watch::channel(Status::default());
        let told = told.clone();
        let on_update = move |update: client::Update| {
            if update.synced {
                // The receiver lives as long as the test.
                let _ = told.send(Instant::now());
            }
            Vec::new()
        };
        tokio::spawn(client::run(connection.clone(), status, on_update));
        synced.push(watched);
    }
    for watched in &mut synced {
        tokio::time::timeout(PATIENCE, watched.wait_for(|status| status.synced))
            .await
            .context("a client is not synchronized")??;
    }
    let all = began.elapsed();
    let mut times = Vec::new();
    for number in 0..CHANGES {
        // What is still under way belongs to what came before.
        while tokio::time::timeout(Duration::from_millis(100), heard.recv()).await.is_ok() {}
        let sent = Instant::now();
        api.send(&[status(number * 7, false)])?;
        let mut last = sent;
        for _ in 0..connections.len() {
            last = tokio::time::timeout(PATIENCE, heard.recv())
                .await
                .context("a client has not heard of it")?
                .context("closed")?;
        }
        times.push(last.saturating_duration_since(sent));
    }
    Ok((times, all))
}
