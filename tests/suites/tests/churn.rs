//! Churn: connections and workloads that come and go in great numbers drop no connection and leave nothing
//! behind.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use ambit_harness::{Family, Lab, Node, PodSpec, ServiceSpec, eventually};
use ambit_suites::churn::{self, Stint, dial, greeting, reset_at_close};
use ambit_suites::every_path::{self, APP, FRONT};
use ambit_suites::paths::{enforces, warm};
use ambit_suites::{Held, Load, Server};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

fn lab() -> Result<(Lab, Vec<Server>)> {
    every_path::start(every_path::builder().service(ServiceSpec::new("shop/crowd").port(FRONT, APP)), &[])
}

/// The database as a pod and as a service, each over another family.
fn database(lab: &Lab) -> [SocketAddr; 2] {
    [every_path::at_pod(lab, "shop/db", Family::V6), every_path::at_service(lab, Family::V4)]
}

/// How many connections a node's pods have received by a path, since its daemon started.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
fn received(node: &Node, path: &str) -> Result<u64> {
    let labels = [("direction", "inbound"), ("path", path)];
    Ok(node.metrics()?.sum("ambit_connections_ended_total", &labels) as u64)
}

#[test]
fn twenty_thousand_connections_leave_nothing_behind() -> Result<()> {
    // By path: client, server, connections to each of the addresses.
    const TRAFFIC: [(&str, &str, &str, usize); 4] = [
        ("tunnel", "shop/far", "shop/db", 3_500),
        ("direct", "shop/near", "shop/db", 4_500),
        ("native", "legacy/old", "shop/db", 1_000),
        ("plaintext", "legacy/old", "shop/checked", 1_000),
    ];
    let (lab, _servers) = lab()?;
    let stints = |connections: &dyn Fn(usize) -> usize| -> Vec<Stint> {
        let traffic = TRAFFIC.iter().flat_map(|(path, client, server, count)| {
            let by_address = Family::BOTH.map(|family| every_path::at_pod(&lab, server, family));
            let addresses = if matches!(*path, "tunnel" | "direct") { database(&lab) } else { by_address };
            addresses.map(|to| (*client, to, *count))
        });
        let stint = |(client, to, count)| Stint {
            from: lab.pod(client).place,
            to,
            connections: connections(count),
            payload: 700,
        };
        traffic.map(stint).collect()
    };
    for to in database(&lab) {
        warm(&lab.nodes[1], &lab.pod("shop/near"), to)?;
    }
    // What stays on purpose is there after this: kept connections between the daemons, certificates,
    // verdicts.
    churn::run(&stints(&|_| 50))?;
    let before: Vec<Held> = lab.nodes.iter().map(Held::at_rest).collect::<Result<_>>()?;
    let counted = TRAFFIC.map(|(path, ..)| received(&lab.nodes[1], path));

    let took = churn::run(&stints(&|count| count))?;

    let mut sum = 0;
    for ((path, _, _, count), before) in TRAFFIC.into_iter().zip(counted) {
        let (before, wanted) = (before?, 2 * u64::try_from(count)?);
        eventually(&format!("the daemon has counted what came by {path}"), || {
            let counted = received(&lab.nodes[1], path)? - before;
            ensure!(counted == wanted, "{counted} connections by {path} instead of {wanted}");
            Ok(())
        })?;
        sum += wanted;
    }
    println!("{sum} connections in {took:.1?}");
    ensure!(sum == 20_000, "{sum} connections");
    for (node, before) in lab.nodes.iter().zip(&before) {
        before.again(node)?;
    }
    println!("held before and after: {before:?}");
    lab.finish()
}

/// Pods that exist only as objects, on both nodes.
fn crowd(pods: usize, version: &str) -> String {
    let mut yaml = String::new();
    for number in 0..pods {
        let (high, low, node) = (number / 250, 1 + number % 250, number % 2);
        let _ = write!(
            yaml,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  namespace: shop\n  name: crowd-{number}\n  \
             labels: {{app: crowd, version: \"{version}\"}}\nspec:\n  nodeName: node{node}\n  \
             serviceAccountName: crowd-{version}\n  containers: [{{name: app}}]\nstatus:\n  phase: \
             Running\n  podIP: 10.77.{high}.{low}\n  podIPs: [{{ip: 10.77.{high}.{low}}}, {{ip: \
             \"fd00:77::{high:x}:{low:x}\"}}]\n  conditions: [{{type: Ready, status: \"True\"}}]\n"
        );
    }
    yaml
}

/// How many of the crowd a daemon knows with an account, in force for new connections.
fn crowd_known(dump: &Value, version: &str) -> usize {
    let workloads = dump["workloads"].as_array().map(Vec::as_slice).unwrap_or_default();
    let account = format!("/sa/crowd-{version}");
    workloads.iter().filter(|w| w["identity"].as_str().is_some_and(|id| id.ends_with(&account))).count()
}

#[test]
fn thousand_workloads_change_without_a_dropped_connection() -> Result<()> {
    const CROWD: usize = 1_000;
    let (lab, _servers) = lab()?;
    let targets = database(&lab);
    for to in targets {
        warm(&lab.nodes[1], &lab.pod("shop/near"), to)?;
    }
    let by_pod = [every_path::at_pod(&lab, "shop/db", Family::V4)];
    let loads = [
        Load::start(&lab.pod("shop/far"), &targets),
        Load::start(&lab.pod("shop/near"), &targets),
        Load::start(&lab.pod("legacy/old"), &by_pod),
    ];
    let progress = || loads.iter().try_for_each(|load| load.progress(50));
    progress()?;
    let known = |version: &'static str, count: usize, since: Instant, what: &str| -> Result<()> {
        for node in &lab.nodes {
            enforces(node, what, |dump| {
                let known = crowd_known(dump, version);
                ensure!(known == count, "it knows {known}");
                Ok(())
            })?;
        }
        println!("{what}: in force at both nodes {:?} after the file was written", since.elapsed());
        Ok(())
    };
    for (what, version) in [("1000 new workloads", "a"), ("1000 changed workloads", "b")] {
        let written = Instant::now();
        lab.apply("crowd", &crowd(CROWD, version))?;
        known(version, CROWD, written, what)?;
        progress()?;
    }
    // Some are real, and enrolled.
    for number in 0..4 {
        let pod = lab.add_pod(PodSpec::new(&format!("shop/extra-{number}")).node(number % 2))?;
        progress()?;
        lab.node_of(&pod).release(&pod)?;
        lab.remove(&format!("pod-shop-extra-{number}"))?;
    }
    let written = Instant::now();
    lab.remove("crowd")?;
    known("b", 0, written, "1000 workloads less")?;
    progress()?;
    for load in loads {
        load.stop().flawless()?;
    }
    let direct = received(&lab.nodes[1], "direct")?;
    ensure!(direct > 100, "only {direct} connections were direct");
    lab.finish()
}

/// A connection of which the test knows what went through it.
struct Known {
    stream: TcpStream,
    from_client: u64,
    from_server: u64,
}

impl Known {
    /// From the namespace that this thread is in.
    fn open(to: SocketAddr) -> Result<Self> {
        let mut stream = dial(to)?;
        let from_server = u64::try_from(greeting(&mut stream).context("failed to read a greeting")?)?;
        Ok(Self { stream, from_client: 0, from_server })
    }

    fn talk(&mut self, bytes: usize) -> Result<()> {
        self.stream.write_all(&vec![b'x'; bytes])?;
        self.stream.read_exact(&mut vec![0; bytes]).context("failed to read the echo")?;
        self.from_client += u64::try_from(bytes)?;
        self.from_server += u64::try_from(bytes)?;
        Ok(())
    }

    /// In an orderly way or with a reset; what went through it.
    fn close(mut self, reset: bool) -> Result<[u64; 2]> {
        if reset {
            reset_at_close(&self.stream)?;
        } else {
            self.stream.shutdown(Shutdown::Write)?;
            ensure!(self.stream.read(&mut [0])? == 0, "more bytes");
        }
        Ok([self.from_client, self.from_server])
    }
}

/// What a daemon has counted between two workloads: opened, closed, failed, bytes of the client, bytes of the
/// server.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters")]
fn counted(node: &Node, reporter: &str) -> Result<[u64; 5]> {
    let metrics = node.metrics()?;
    let labels = [("reporter", reporter), ("source_workload", "near"), ("destination_workload", "db")];
    let names =
        ["connections_opened", "connections_closed", "connections_failed", "received_bytes", "sent_bytes"];
    Ok(names.map(|name| metrics.sum(&format!("istio_tcp_{name}_total"), &labels) as u64))
}

#[test]
fn connections_during_daemon_restart_are_counted_afterwards() -> Result<()> {
    const OLD: usize = 40;
    const NEW: usize = 20;
    let (lab, _servers) = lab()?;
    let (node, near) = (&lab.nodes[1], lab.pod("shop/near"));
    let to = database(&lab)[1];
    warm(node, &near, to)?;
    eventually("nothing is open", || {
        ensure!(node.connections()?.as_array().is_some_and(Vec::is_empty));
        Ok(())
    })?;
    let open = |count: usize, size: usize| -> Result<Vec<Known>> {
        near.run(|| {
            let connection = |number: usize| -> Result<Known> {
                let mut connection = Known::open(to)?;
                connection.talk(size + number)?;
                Ok(connection)
            };
            (0..count).map(connection).collect()
        })?
    };
    let opened = node.metrics()?.sum("istio_tcp_connections_opened_total", &[]);
    let mut connections = open(OLD, 1_000)?;
    eventually("the first daemon has counted them as opened", || {
        let now = node.metrics()?.sum("istio_tcp_connections_opened_total", &[]) - opened;
        ensure!((now - 80.0).abs() < 0.5, "{now} instead of one for each end");
        Ok(())
    })?;

    node.ztunnel.kill()?;
    let mut carried = [0, 0];
    let mut ended = 0;
    let mut end = |connections: Vec<Known>| -> Result<()> {
        for connection in connections {
            let bytes = connection.close(ended % 3 == 2)?;
            carried = [carried[0] + bytes[0], carried[1] + bytes[1]];
            ended += 1;
        }
        Ok(())
    };
    end(connections.split_off(OLD / 2)).context("failed to end while there is no daemon")?;
    for connection in &mut connections {
        connection.talk(3_000).context("failed to go on without a daemon")?;
    }
    let mut new = open(NEW, 50_000).context("failed to open while the lease holds")?;
    end(new.split_off(NEW / 2))?;
    connections.extend(new);

    node.start()?;
    eventually("what is open is listed with its bytes", || {
        let listed = node.connections()?;
        let listed = listed.as_array().context("a list")?;
        ensure!(listed.len() == 2 * connections.len(), "{} entries", listed.len());
        for connection in &connections {
            let client = SocketAddr::new(near.v4.into(), connection.stream.local_addr()?.port()).to_string();
            let ours: Vec<_> = listed.iter().filter(|open| open["source"]["address"] == *client).collect();
            ensure!(ours.len() == 2, "{} entries of {client}", ours.len());
            for open in ours {
                let bytes = [open["bytes_from_client"].as_u64(), open["bytes_from_server"].as_u64()];
                let expected = [Some(connection.from_client), Some(connection.from_server)];
                ensure!(bytes == expected, "{bytes:?} instead of {expected:?} in {open}");
            }
        }
        Ok(())
    })?;
    for connection in &mut connections {
        connection.talk(500).context("failed to go on under the next daemon")?;
    }
    end(connections)?;
    // The first daemon has counted the opening of the old ones, the second all that came later.
    let expected = [u64::try_from(NEW)?, u64::try_from(OLD + NEW)?, 0, carried[0], carried[1]];
    for reporter in ["source", "destination"] {
        eventually(&format!("the {reporter}'s counters are right"), || {
            let counted = counted(node, reporter)?;
            ensure!(counted == expected, "{counted:?} instead of {expected:?}");
            Ok(())
        })?;
    }
    println!("{ended} connections, {carried:?} bytes by client and server");
    Held::at_rest(node)?;
    lab.finish()
}
