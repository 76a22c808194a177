//! Every behaviour that applications may rely on (`ambit-semantics`), between two pods without a mesh,
//! through the tunnel and on the direct path: the observations of both ends must be equal, for the tunnel
//! except in the differences that docs/guide/socket-semantics.md explains.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, eventually};
use ambit_suites::paths::warm;
use ambit_suites::{Rows, Server};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const GUIDE: &str = include_str!("../../../docs/guide/socket-semantics.md");

/// A row whose observations differ through the tunnel, and how: the guide says why.
#[derive(Debug)]
struct Difference {
    row: &'static str,
    /// Where in the pair of observations; everything else must be equal.
    at: &'static str,
    plain: Value,
    tunnel: Value,
}

fn differences() -> Vec<Difference> {
    let difference = |row, at, plain, tunnel| Difference { row, at, plain, tunnel };
    vec![
        difference("getsockname", "/client/getsockname", json!("its own address"), json!("loopback")),
        difference("connect_refused", "/client/refused", json!("ECONNREFUSED"), json!("ECONNRESET")),
        difference("out_of_band", "/server/msg_oob", json!(1), json!("EINVAL")),
        difference("out_of_band", "/server/urgent", json!("U"), Value::Null),
        difference("out_of_band", "/server/at_mark", json!(true), json!(false)),
        difference("out_of_band", "/server/rest", json!("after"), json!("Uafter")),
    ]
}

/// What a daemon may need for 16 stalled connections beyond what it used before: the windows of 16 tunnels,
/// twice over.
const STALLED_MEMORY: u64 = 64 << 10;

fn lab(plain: bool) -> Result<Lab> {
    let builder = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(PodSpec::new("shop/client"))
        .pod(PodSpec::new("shop/server").node(1))
        .pod(PodSpec::new("shop/near"));
    if plain { builder.plain().start() } else { builder.start() }
}

/// The server on the client's own node.
const NEAR: &str = "shop/near";
const FAR: &str = "shop/server";

/// Both ends' observations of one row.
fn observe(lab: &Lab, server: &str, row: &str, family: Family, port: u16) -> Result<Value> {
    let (client, server) = (lab.pod("shop/client"), lab.pod(server));
    let address = SocketAddr::new(server.ip(family), port).to_string();
    let mut serving = server.serve("ambit-semantics", &["serve", row, &address])?;
    let client = outcome(&client.output("ambit-semantics", &["connect", row, &address])?)?;
    serving.wait(Duration::from_mins(2))?;
    Ok(json!({"client": client, "server": outcome(&serving.log())?}))
}

fn outcome(output: &str) -> Result<Value> {
    let line = output
        .lines()
        .find(|line| line.starts_with('{'))
        .with_context(|| format!("no observation: {output}"))?;
    let mut line: Value = serde_json::from_str(line)?;
    Ok(line["outcome"].take())
}

fn rows(lab: &Lab) -> Result<Vec<String>> {
    Ok(lab.outside.output("ambit-semantics", &["list"])?.lines().map(str::to_owned).collect())
}

/// [`observe`], on the direct path: the kernel has a cached verdict, and the row's connections really
/// went that way.
fn observe_direct(lab: &Lab, row: &str, family: Family, port: u16) -> Result<Value> {
    let (client, near) = (lab.pod("shop/client"), lab.pod(NEAR));
    let node = lab.node_of(&near);
    let to = SocketAddr::new(near.ip(family), port);
    let server = Server::start(&near, NEAR, port)?;
    warm(node, &client, to)?;
    drop(server);
    let mark = node.ztunnel.log_mark();
    let seen = observe(lab, NEAR, row, family, port)?;
    if NOT_A_CONNECTION.contains(&row) {
        return Ok(seen);
    }
    // A client that speaks Multipath TCP always takes the tunnel.
    let expected = if MPTCP_CLIENTS.contains(&row) { "tunnel" } else { "direct" };
    let to = to.to_string();
    eventually("the row's connections are in the access log", || {
        let records = node.records_since(mark);
        let ours = records.iter().filter(|record| {
            let meant = [&record["dst.hbone_addr"], &record["dst.addr"]];
            record["direction"] == "inbound" && meant.iter().any(|address| **address == to.as_str())
        });
        let paths: BTreeSet<&str> = ours.filter_map(|record| record["path"].as_str()).collect();
        ensure!(!paths.is_empty(), "none");
        ensure!(paths == BTreeSet::from([expected]), "their paths were {paths:?}");
        Ok(())
    })?;
    Ok(seen)
}

/// Rows after which there is no connection to report.
const NOT_A_CONNECTION: &[&str] = &["connect_refused"];
const MPTCP_CLIENTS: &[&str] = &["connect_mptcp", "connect_mptcp_to_plain"];

/// Everything observed, by row and family.
fn observe_all(
    lab: &Lab,
    observe: impl Fn(&Lab, &str, Family, u16) -> Result<Value>,
) -> Result<BTreeMap<(String, bool), Result<Value>>> {
    let mut seen = BTreeMap::new();
    for (number, row) in rows(lab)?.into_iter().enumerate() {
        for family in [Family::V4, Family::V6] {
            // Ports are part of what is observed: the same in both labs, and never used twice.
            let port = 20_000 + u16::try_from(number)? * 2 + u16::from(family == Family::V6);
            seen.insert((row.clone(), family == Family::V6), observe(lab, &row, family, port));
        }
    }
    Ok(seen)
}

/// What the tunnel's observation must be, given the plain one.
fn expected(row: &str, plain: &Value) -> Result<Value> {
    let mut expected = plain.clone();
    for difference in differences().iter().filter(|difference| difference.row == row) {
        let (parent, key) = difference.at.rsplit_once('/').context("a difference is at a path")?;
        let parent = expected.pointer_mut(parent).with_context(|| format!("no {parent} in {row}"))?;
        let found = parent.get(key).cloned().unwrap_or_default();
        ensure!(found == difference.plain, "{row}: without a mesh {} is {found}", difference.at);
        parent[key] = difference.tunnel.clone();
    }
    Ok(expected)
}

#[test]
fn tunnelled_socket_behaves_as_documented() -> Result<()> {
    let without = lab(true)?;
    let far = |lab: &Lab, row: &str, family, port| observe(lab, FAR, row, family, port);
    let plain = observe_all(&without, far)?;
    without.finish()?;
    let with = lab(false)?;
    let tunnel = observe_all(&with, far)?;
    let mut table = Rows::new();
    for ((row, v6), tunnel) in tunnel {
        let name = format!("{row} {}", if v6 { "IPv6" } else { "IPv4" });
        table.row(&name, || {
            let plain = plain[&(row.clone(), v6)]
                .as_ref()
                .map_err(|error| anyhow::anyhow!("without a mesh: {error:#}"))?;
            ensure!(plain.pointer("/client/error").is_none(), "fails without a mesh: {plain}");
            ensure!(plain.pointer("/server/error").is_none(), "fails without a mesh: {plain}");
            let (expected, tunnel) = (expected(&row, plain)?, tunnel?);
            ensure!(tunnel == expected, "\n  expected {expected}\n  observed {tunnel}");
            Ok(())
        });
    }
    table.finish();
    Ok(())
}

/// Between two pods of one node, without a mesh and on the direct path: no row differs.
#[test]
fn direct_socket_behaves_like_plain_tcp() -> Result<()> {
    let without = lab(true)?;
    let plain = observe_all(&without, |lab, row, family, port| observe(lab, NEAR, row, family, port))?;
    without.finish()?;
    let with = lab(false)?;
    let direct = observe_all(&with, observe_direct)?;
    let mut table = Rows::new();
    for ((row, v6), direct) in direct {
        table.row(&format!("{row} {}", if v6 { "IPv6" } else { "IPv4" }), || {
            let plain = plain[&(row.clone(), v6)]
                .as_ref()
                .map_err(|error| anyhow::anyhow!("without a mesh: {error:#}"))?;
            ensure!(plain.pointer("/client/error").is_none(), "fails without a mesh: {plain}");
            ensure!(plain.pointer("/server/error").is_none(), "fails without a mesh: {plain}");
            let direct = direct?;
            // The two rows that leave in a tunnel differ as tunnels do.
            let expected =
                if MPTCP_CLIENTS.contains(&row.as_str()) { expected(&row, plain)? } else { plain.clone() };
            ensure!(direct == expected, "\n  expected {expected}\n  observed {direct}");
            Ok(())
        });
    }
    table.finish();
    with.finish()
}

#[test]
fn stalled_reader_uses_bounded_daemon_memory() -> Result<()> {
    let lab = lab(false)?;
    let port = 19_000;
    // The first use makes certificates, connections and buffers that stay.
    observe(&lab, FAR, "connect_blocking", Family::V4, port)?;
    let before: Vec<u64> = lab.nodes.iter().map(|node| node.ztunnel.memory()).collect::<Result<_>>()?;
    let most = [AtomicU64::new(0), AtomicU64::new(0)];
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                for (node, most) in lab.nodes.iter().zip(&most) {
                    most.fetch_max(node.ztunnel.memory().unwrap_or(u64::MAX), Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let seen = observe(&lab, FAR, "stalled_reader", Family::V4, port + 1);
        over.store(true, Ordering::Release);
        ensure!(seen?.pointer("/client/stopped") == Some(&json!(true)));
        Ok(())
    })?;
    for ((node, before), most) in lab.nodes.iter().zip(before).zip(&most) {
        let most = most.load(Ordering::Relaxed);
        println!("{}: {before} KiB before, at most {most} KiB while 16 readers stalled", node.name);
        ensure!(most < before + STALLED_MEMORY, "{}: from {before} KiB to {most} KiB", node.name);
    }
    lab.finish()
}

#[test]
fn guide_lists_every_difference() {
    for difference in differences() {
        assert!(
            GUIDE.contains(&format!("`{}`", difference.row)),
            "the guide does not explain {}",
            difference.row
        );
    }
}
