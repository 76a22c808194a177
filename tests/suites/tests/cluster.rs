//! The cluster that the Kubernetes suites stand on: what it promises them, row by row, on one cluster.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ambit_cluster::archive::Archive;
use ambit_cluster::{Cluster, Node, Options, Part};
use ambit_harness::{eventually, within};
use ambit_suites::Rows;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A server on every node, its service in both families, and what an agent of a mesh mounts.
const OBJECTS: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      hostPID: true
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: ambit.dev/tried:1
        imagePullPolicy: IfNotPresent
        command: [/bin/shop, $(NODE), --listen, "[::]:8080"]
        env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
        ports: [{containerPort: 8080, hostPort: 18080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        volumeMounts:
        - {name: cni, mountPath: /host/cni}
        - {name: groups, mountPath: /host/cgroup, mountPropagation: HostToContainer}
        - {name: run, mountPath: /host/run, mountPropagation: HostToContainer}
      volumes:
      - {name: cni, hostPath: {path: /opt/cni/bin}}
      - {name: groups, hostPath: {path: /sys/fs/cgroup}}
      - {name: run, hostPath: {path: /run}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

/// Long enough for two nodes on a machine that is busy with something else.
const DEADLINE: Duration = Duration::from_mins(3);

#[test]
fn cluster_serves_traffic_and_survives_restarts() -> Result<()> {
    let started = Instant::now();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let cluster = Cluster::up(&Options::new("cluster-suite", folder.join("cluster-suite")))?;
    println!("up after {} s", started.elapsed().as_secs());
    cluster.load(&image(folder)?)?;
    cluster.apply(OBJECTS)?;
    serving(&cluster)?;

    let mut rows = Rows::new();
    for family in ["-4", "-6"] {
        let name = "http://web.default.svc.cluster.local/";
        rows.row(&format!("pods of both nodes answer by name, curl {family}"), || {
            by_name(&cluster, family, name)
        });
    }
    rows.row("a pod reaches the pods of both nodes by address", || by_address(&cluster));
    rows.row("a host port and a node port answer from outside", || from_outside(&cluster));
    rows.row("logs", || logs(&cluster));
    rows.row("port-forward", || port_forward(&cluster));
    rows.row("a node acts for itself only", || node_authorization(&cluster));
    rows.row("a token is good for its audience only", || audiences(&cluster));
    rows.row("a pod sees its own node's files, and mounts that come later", || own_files(&cluster));
    rows.row("a pod is in a group below its node's, in every hierarchy", || own_groups(&cluster));
    rows.row("the control plane restarts", || control_plane(&cluster));
    rows.row("a node without power shows, and comes back with its pods", || reboot(&cluster));
    rows.row("nothing is left", || nothing_left(cluster));
    rows.finish();
    Ok(())
}

/// A server and a client, of this machine's own.
fn image(folder: &Path) -> Result<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/debug");
    let binaries = std::env::var_os("AMBIT_BIN_DIR").map_or_else(default, PathBuf::from);
    let curl = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join("curl"))
        .find(|path| path.is_file())
        .context("curl is missing")?;
    let path = folder.join("tried.tar");
    Archive::new("ambit.dev/tried:1").program(&binaries.join("shop"))?.program(&curl)?.write(&path)?;
    Ok(path)
}

fn serving(cluster: &Cluster) -> Result<()> {
    let timeout = format!("--timeout={}s", DEADLINE.as_secs());
    cluster.output(&["rollout", "status", "daemonset/web", &timeout]).map(drop)
}

/// The pod of the server on a node.
fn pod(cluster: &Cluster, node: &Node) -> Result<Value> {
    let field = format!("--field-selector=spec.nodeName={}", node.name());
    let text = cluster.output(&["get", "pods", "-l", "app=web", &field, "-o", "json"])?;
    let list: Value = serde_json::from_str(&text)?;
    list["items"].get(0).cloned().with_context(|| format!("no pod on {}", node.name()))
}

fn pod_name(cluster: &Cluster, node: &Node) -> Result<String> {
    Ok(pod(cluster, node)?["metadata"]["name"].as_str().context("a pod has a name")?.to_owned())
}

/// `curl` in the pod of a node.
fn curl(cluster: &Cluster, node: &Node, arguments: &[&str]) -> Result<String> {
    let name = pod_name(cluster, node)?;
    let words = ["exec", &name, "--", "/bin/curl", "--silent", "--show-error", "--fail", "--max-time", "5"];
    cluster.output(&[&words, arguments].concat())
}

/// Asks until both nodes have answered.
fn both_answer(mut ask: impl FnMut() -> Result<String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    eventually("both nodes answer", || {
        seen.extend(ask()?.split('(').next().map(str::to_owned));
        ensure!(seen.len() == 2, "only {seen:?}");
        Ok(())
    })?;
    ensure!(seen.iter().eq(["node1", "node2"]), "{seen:?}");
    Ok(())
}

fn by_name(cluster: &Cluster, family: &str, url: &str) -> Result<()> {
    let node = &cluster.nodes()[0];
    both_answer(|| curl(cluster, node, &[family, url]))
}

fn by_address(cluster: &Cluster) -> Result<()> {
    for to in cluster.nodes() {
        let pod = pod(cluster, to)?;
        let addresses = pod["status"]["podIPs"].as_array().context("a pod has addresses")?;
        ensure!(addresses.len() == 2, "not of both families: {addresses:?}");
        for address in addresses {
            let address = address["ip"].as_str().context("an address")?;
            let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
            let answer = curl(cluster, &cluster.nodes()[0], &[&format!("http://{host}:8080/")])?;
            ensure!(answer.starts_with(to.name()), "{answer}");
        }
    }
    Ok(())
}

fn from_outside(cluster: &Cluster) -> Result<()> {
    let port = cluster.output(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"])?;
    for node in cluster.nodes() {
        for host in [node.address().to_string(), format!("[{}]", node.address_v6())] {
            let ask = |port: &str| outside(&format!("http://{host}:{port}/"));
            let answer = ask("18080")?;
            ensure!(answer.starts_with(node.name()), "{host}: {answer}");
            both_answer(|| ask(&port)).with_context(|| format!("node port of {host}"))?;
        }
    }
    Ok(())
}

/// `curl` on the host.
fn outside(url: &str) -> Result<String> {
    let mut command = Command::new("curl");
    output(command.args(["--silent", "--show-error", "--fail", "--max-time", "5", url]))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(String::from_utf8(output.stdout)?)
}

fn logs(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let text = cluster.output(&["logs", &pod_name(cluster, node)?])?;
        ensure!(text == "ready\n", "{}: {text}", node.name());
    }
    Ok(())
}

fn port_forward(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes()[1];
    let mut command =
        cluster.kubectl(&["port-forward", &format!("pod/{}", pod_name(cluster, node)?), ":8080"]);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let asked = (|| {
        let mut line = String::new();
        // Open until the end: it writes more, and ends when its output is closed.
        let said = child.stdout.as_mut().context("no output")?;
        BufReader::new(said).read_line(&mut line)?;
        let address = line.split_whitespace().nth(2).context("it says where it forwards from")?;
        outside(&format!("http://{address}/"))
    })();
    child.kill()?;
    child.wait()?;
    let answer = asked?;
    ensure!(answer.starts_with(node.name()), "{answer}");
    Ok(())
}

fn node_authorization(cluster: &Cluster) -> Result<()> {
    let config = cluster.folder().join("pki/node1.kubeconfig");
    let annotate = |node: &str| {
        cluster.output(&[
            "--kubeconfig",
            &config.display().to_string(),
            "annotate",
            "node",
            node,
            "tried=yes",
        ])
    };
    annotate("node1").context("its own node")?;
    let refused = annotate("node2").err().context("another node's annotation was accepted")?;
    ensure!(refused.to_string().contains("only its own Node object"), "{refused}");
    Ok(())
}

fn audiences(cluster: &Cluster) -> Result<()> {
    let token = cluster.output(&["create", "token", "default", "--audience=ambit"])?;
    for (audience, good) in [("ambit", true), ("another", false)] {
        let path = cluster.folder().join("review.json");
        let review = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token.trim(), "audiences": [audience]},
        });
        std::fs::write(&path, review.to_string())?;
        let text = cluster.output(&["create", "-o", "json", "-f", &path.display().to_string()])?;
        let answer: Value = serde_json::from_str(&text)?;
        let authenticated = answer["status"]["authenticated"].as_bool().unwrap_or(false);
        ensure!(authenticated == good, "for {audience}: {text}");
    }
    Ok(())
}

fn own_files(cluster: &Cluster) -> Result<()> {
    let script = "hostname >/opt/cni/bin/marker; mkdir -p /run/late; mountpoint -q /run/late || mount -t \
                  tmpfs late /run/late; hostname >/run/late/marker";
    for node in cluster.nodes() {
        output(&mut node.run("sh", &["-c", script]))?;
    }
    for node in cluster.nodes() {
        for file in ["cni/marker", "run/late/marker"] {
            let text = curl(cluster, node, &[&format!("file:///host/{file}")])?;
            ensure!(text.trim_end() == node.name(), "{file} on {}: {text}", node.name());
        }
    }
    ensure!(!Path::new("/opt/cni/bin/marker").exists(), "the host has the marker");
    Ok(())
}

/// The groups of a process, as its node sees them: all but the kernel's root.
fn own_groups(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let groups = curl(cluster, node, &["file:///proc/self/cgroup"])?;
        let memory = groups.lines().find(|line| line.contains(":memory:") || line.starts_with("0::"));
        let memory = memory.with_context(|| format!("no group: {groups}"))?;
        ensure!(memory.contains(":/kubepods/"), "{groups}");
        let host = std::fs::read_to_string(format!("/proc/{}/cgroup", node.pid()?))?;
        let below = |line: &str| line.contains(":/ambit-cluster-") && line.contains(node.name());
        ensure!(host.lines().all(below), "{host}");
        // What attaches to the root of version 2 is there for pods that mount it.
        let mounts = output(&mut node.run("cat", &["/proc/mounts"]))?;
        let unified = mounts.lines().find(|line| line.contains(" cgroup2 ")).context("no cgroup2")?;
        let path = unified.split(' ').nth(1).context("a mount has a place")?;
        let inside = path.replace("/sys/fs/cgroup", "/host/cgroup");
        curl(cluster, node, &[&format!("file://{inside}/cgroup.procs")])?;
    }
    Ok(())
}

fn control_plane(cluster: &Cluster) -> Result<()> {
    cluster.restart_control_plane()?;
    cluster.output(&["get", "pods"])?;
    cluster.stop(Part::Scheduler)?;
    cluster.start(Part::Scheduler)?;
    // Both are at work: a pod that is deleted is made again, and placed.
    let node = &cluster.nodes()[0];
    let old = pod_name(cluster, node)?;
    cluster.output(&["delete", "pod", &old])?;
    within(DEADLINE, "another pod is made", || {
        ensure!(pod_name(cluster, node)? != old, "still {old}");
        Ok(())
    })?;
    serving(cluster)
}

fn reboot(cluster: &Cluster) -> Result<()> {
    let node = &cluster.nodes()[1];
    let before = node.pid()?;
    node.power_off()?;
    ensure!(node.pid().is_err(), "its init is alive");
    let timeout = format!("--timeout={}s", DEADLINE.as_secs());
    cluster.output(&["wait", "--for=condition=Ready=Unknown", "node/node2", &timeout])?;
    node.power_on()?;
    cluster.ready()?;
    ensure!(node.pid()? != before, "the same init");
    output(&mut node.run("test", &["!", "-e", "/run/late/marker"])).context("/run was kept")?;
    output(&mut node.run("test", &["-e", "/opt/cni/bin/marker"])).context("the disk was lost")?;
    let host = format!("http://{}:18080/", node.address());
    let answer = within(DEADLINE, "its pod answers again", || outside(&host))?;
    ensure!(answer.starts_with("node2"), "{answer}");
    Ok(())
}

fn nothing_left(cluster: Cluster) -> Result<()> {
    let init = cluster.nodes()[0].pid()?;
    let groups = std::fs::read_to_string(format!("/proc/{init}/cgroup"))?;
    let group =
        groups.split('/').find(|word| word.starts_with("ambit-cluster-")).context("no group")?.to_owned();
    let octets = cluster.nodes()[0].address().octets();
    let subnet = format!("{}.{}.{}.", octets[0], octets[1], octets[2]);
    let folder = cluster.folder().to_path_buf();
    cluster.down()?;
    let left = |text: &str, what: &str| text.lines().find(|line| line.contains(what)).map(str::to_owned);
    for entry in std::fs::read_dir("/proc")? {
        let process = entry?.path();
        // One that has ended, and whose parent has not noticed yet, has no program any more.
        if std::fs::read_link(process.join("exe")).is_err() {
            continue;
        }
        let path = process.join("cgroup");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        ensure!(!text.contains(&group), "{}: {text}", path.display());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(left(&mounts, &folder.display().to_string()).is_none(), "mounted: {mounts}");
    for mount in mounts.lines().filter(|line| line.contains(" cgroup")) {
        let path = Path::new(mount.split(' ').nth(1).unwrap_or_default()).join(&group);
        ensure!(!path.exists(), "{} is left", path.display());
    }
    let addresses = output(Command::new("ip").args(["-oneline", "address"]))?;
    ensure!(left(&addresses, &subnet).is_none(), "{addresses}");
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}
