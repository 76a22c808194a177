//! How the controller scales, against a real API server: 10,000 pods, 1,000 services, up to 200 daemons'
//! streams.
//!
//! Nodes and pods are objects without a kubelet; the daemons are real xDS clients with real tokens, all in
//! this process. So what is measured is the controller with the API server and its clients beside it on the
//! same processors. Figures and a chart go to the folder that `AMBIT_SCALE` names, if it is set.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ambit_cluster::{Cluster, Options, Part};
use ambit_suites::kubernetes::{DEADLINE, SYSTEM, run, workspace};
use ambit_suites::scale::{Api, CLIENTS, Controller, PODS, SERVICES, Stage, Usage, draw, populate, status};
use ambit_xds::client::{self, Connection, Status};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

/// Clients that are connected while changes are timed.
const STAGES: [usize; 4] = [1, 50, 100, CLIENTS];
/// Changes that are timed in each.
const CHANGES: usize = 100;

#[test]
fn controller_serves_ten_thousand_pods() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("ambit-scale-").tempdir()?;
    let mut options = Options::new("scale", folder.path().join("cluster"));
    options.nodes = 1;
    let cluster = Cluster::up(&options)?;
    let api = Api::new(&cluster, folder.path())?;
    cluster.apply(&std::fs::read_to_string(crds(folder.path())?)?)?;
    // It would remove pods and nodes that have no kubelet.
    cluster.stop(Part::ControllerManager)?;
    cluster.stop(Part::Scheduler)?;
    cluster.nodes()[0].stop("kubelet")?;
    let began = Instant::now();
    populate(&api)?;
    println!("objects made in {:.1} s", began.elapsed().as_secs_f64());

    let controller = Controller::start(&cluster, folder.path())?;
    let alone = controller.usage()?;
    println!("controller ready after {:.2} s: {alone:?}", controller.ready.as_secs_f64());
    let connections = connections(&cluster, &api, &controller)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let first = runtime.block_on(first_sync(&connections[0]))?;
    println!("first synchronization of one client: {:.0} ms", first.as_secs_f64() * 1e3);
    let stages = runtime.block_on(stages(&connections, &api, &controller))?;
    let end = controller.usage()?;
    report(first, alone, &stages, end)?;

    // Memory is what it is on a busy machine too; of times only what is broken fails here.
    ensure!(end.peak <= 500, "the controller needed {} MB", end.peak);
    let slowest = stages.iter().map(|stage| stage.percentile(50)).fold(0.0, f64::max);
    ensure!(first < Duration::from_secs(10) && slowest < 3000.0, "{first:?}, {slowest} ms");
    drop(controller);
    cluster.down()
}

/// Prints the figures, and writes them where they are wanted.
fn report(first: Duration, alone: Usage, stages: &[Stage], end: Usage) -> Result<()> {
    let mut text = String::from(
        "| clients | p50 | p90 | p99 | most | processor time for a change | memory \
         |\n|---|---|---|---|---|---|---|\n",
    );
    for stage in stages {
        let [p50, p90, p99, most] = [50, 90, 99, 100].map(|percent| stage.percentile(percent));
        let _ = writeln!(
            text,
            "| {} | {p50:.0} ms | {p90:.0} ms | {p99:.0} ms | {most:.0} ms | {:.1} ms | {} MB |",
            stage.clients, stage.cpu, stage.resident
        );
    }
    let _ = writeln!(
        text,
        "\nFirst synchronization of one client: {:.0} ms. Controller: {} MB alone, {} MB at most, {:.1} s \
         of processor time in all.",
        first.as_secs_f64() * 1e3,
        alone.resident,
        end.peak,
        end.cpu
    );
    println!("{text}");
    let Some(folder) = std::env::var_os("AMBIT_SCALE").map(PathBuf::from) else { return Ok(()) };
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("scale.md"), text)?;
    std::fs::write(folder.join("scale.svg"), draw("One controller, 10,000 pods, 1,000 services", stages))?;
    Ok(())
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
            let body = json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                "spec": {"audiences": ["ambit-ca"], "boundObjectRef": pod},
            });
            ("POST", format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/ztunnel/token"), body)
        })
        .collect();
    let answers = api.send(&requests).context("failed to create tokens")?;
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
        ended = client::run(connection.clone(), status, on_update) => {
            anyhow::bail!("the client ended: {ended:?}")
        }
        synced = watched.wait_for(|status| status.synced) => { synced?; }
        () = tokio::time::sleep(DEADLINE) => anyhow::bail!("not synchronized"),
    }
    let received = received.load(Ordering::Relaxed);
    ensure!(received >= PODS + SERVICES, "only {received} resources");
    Ok(began.elapsed())
}

/// More and more clients; at each number changes, one after the other: from sending it to the API server
/// until the last client has it.
async fn stages(connections: &[Connection], api: &Api, controller: &Controller) -> Result<Vec<Stage>> {
    let (told, mut heard) = mpsc::unbounded_channel();
    let mut stages = Vec::new();
    let mut connected = 0;
    for clients in STAGES {
        let began = Instant::now();
        let mut synced = Vec::new();
        for connection in &connections[connected..clients] {
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
            tokio::time::timeout(DEADLINE, watched.wait_for(|status| status.synced))
                .await
                .context("a client is not synchronized")??;
        }
        println!("{} more clients synchronized in {:.1} s", synced.len(), began.elapsed().as_secs_f64());
        connected = clients;
        let before = controller.usage()?;
        let mut times = Vec::new();
        for number in 0..CHANGES {
            let at = stages.len() * CHANGES + number;
            times.push(change(api, at, clients, &mut heard).await?);
        }
        times.sort();
        let after = controller.usage()?;
        let changes = f64::from(u32::try_from(CHANGES)?);
        stages.push(Stage {
            clients,
            times,
            resident: after.resident,
            cpu: (after.cpu - before.cpu) * 1e3 / changes,
        });
    }
    Ok(stages)
}

/// Makes a pod unready; how long until the last client has it.
async fn change(
    api: &Api,
    pod: usize,
    clients: usize,
    heard: &mut mpsc::UnboundedReceiver<Instant>,
) -> Result<Duration> {
    // What is still under way belongs to what came before.
    while tokio::time::timeout(Duration::from_millis(100), heard.recv()).await.is_ok() {}
    let sent = Instant::now();
    api.send(&[status(pod, false)])?;
    let mut last = sent;
    for _ in 0..clients {
        last = tokio::time::timeout(DEADLINE, heard.recv())
            .await
            .context("a client has not heard of it")?
            .context("closed")?;
    }
    Ok(last.saturating_duration_since(sent))
}
