//! Floods by an unprivileged pod: what it can fill it gets a share of. Meanwhile the daemon stays under its
//! limit of memory, other pods are served, and nothing passes unlisted; afterwards memory comes back within a
//! minute.
//!
//! Sizes are scaled down; with `AMBIT_SOAK` set, as `cargo xtask test --all` does, they are those that the
//! limits are made for.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ambit_harness::{Builder, Daemon, Lab, NamespaceSpec, Place, PodSpec, Process, eventually, within};
use ambit_suites::{Rows, Server, ask};
use anyhow::{Context, Result, ensure};

/// Where honest servers listen.
const APP: u16 = 7000;
/// Where a server writes without end.
const POUR: u16 = 7001;
/// The daemons' limit, in KiB; as the chart ships it.
const LIMIT: u64 = 512 << 10;
/// What tunnels may hold of it, in bytes.
const HALF_OF_THE_LIMIT: f64 = 268_435_456.0;
/// How long a daemon may keep what a flood made it take, beside what it keeps for good, in KiB.
const BACK: Duration = Duration::from_mins(1);
const KEPT: u64 = 48 << 10;
/// How long a flood may take to be there.
const MADE: Duration = Duration::from_mins(5);
/// Connections that are timed.
const TIMED: usize = 100;

fn full() -> bool {
    std::env::var_os("AMBIT_SOAK").is_some()
}

fn builder() -> Builder {
    Lab::builder()
        .daemon_config("memory_limit: 512Mi")
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/evil"))
        .pod(PodSpec::new("shop/db").node(1))
        .pod(PodSpec::new("shop/victim").node(1))
        .pod(PodSpec::new("legacy/old"))
}

/// The slowest of a hundred new connections of another pod.
fn p99(lab: &Lab) -> Result<Duration> {
    let (web, db) = (lab.pod("shop/web"), SocketAddr::new(lab.pod("shop/db").v4.into(), APP));
    let mut times = Vec::new();
    for _ in 0..TIMED {
        let began = Instant::now();
        ask(&web, db).context("another pod's connection")?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[TIMED * 99 / 100 - 1])
}

fn daemons(lab: &Lab) -> impl Iterator<Item = &Daemon> {
    lab.nodes.iter().map(|node| &node.ztunnel)
}

/// While a flood lasts: others are served as before, within twice and what a busy machine adds, and no daemon
/// is above its limit. A machine that is busy with something else for a moment gets another chance.
fn others_are_served(lab: &Lab, before: Duration) -> Result<()> {
    eventually("others are served as before", || {
        let during = p99(lab)?;
        println!("  p99 of others: {before:?} before, {during:?} during");
        ensure!(during <= before * 2 + Duration::from_millis(20), "p99 {before:?} before, {during:?} during");
        Ok(())
    })?;
    for daemon in daemons(lab) {
        daemon.check()?;
        let memory = daemon.memory()?;
        println!("  {memory} KiB");
        ensure!(memory < LIMIT, "{memory} KiB of {LIMIT}");
    }
    Ok(())
}

/// A flood in a pod, once it says that it is there.
fn flood(place: &Place, arguments: &[&str], says: &str) -> Result<Process> {
    let process = place.start("ambit-flood", arguments)?;
    within(MADE, "the flood is there", || {
        let log = process.log();
        ensure!(log.contains(says), "it says {log:?}");
        Ok(())
    })?;
    println!("  {}", process.log().trim());
    Ok(process)
}

#[test]
fn unread_tunnels_keep_to_the_limit_and_give_memory_back() -> Result<()> {
    let lab = builder().start()?;
    let _server = Server::start(&lab.pod("shop/db"), "db", APP)?;
    let victim = lab.pod("shop/victim");
    let _pouring = victim.serve("ambit-flood", &["pour", &POUR.to_string()])?;
    let count = if full() { 13_000 } else { 1_000 };
    let before = p99(&lab)?;
    let at_rest: Vec<u64> = daemons(&lab).map(Daemon::memory).collect::<Result<_>>()?;
    let to = SocketAddr::new(victim.v4.into(), POUR).to_string();
    let mut rows = Rows::new();
    rows.row("unread tunnels", || {
        let mut holding = flood(&lab.pod("shop/evil"), &["hold", &to, &count.to_string()], "held ")?;
        // Until no more arrives.
        let mut last = 0.0;
        eventually("the tunnels are full", || {
            let now = lab.nodes[0].metrics()?.sum("ambit_tunnel_memory_bytes", &[]);
            let still = now > 0.0 && (now - last).abs() < 1.0;
            last = now;
            std::thread::sleep(Duration::from_millis(200));
            ensure!(still, "{now} bytes");
            Ok(())
        })?;
        println!("  {last} bytes are held");
        ensure!(last <= HALF_OF_THE_LIMIT, "{last} bytes are held");
        let served = others_are_served(&lab, before);
        holding.kill()?;
        served
    });
    rows.row("memory comes back within a minute", || {
        within(BACK, "memory is given back", || {
            for (daemon, before) in daemons(&lab).zip(&at_rest) {
                let now = daemon.memory()?;
                ensure!(now <= before + KEPT, "from {before} to {now} KiB");
            }
            Ok(())
        })
    });
    rows.finish();
    lab.finish()
}

#[test]
fn listeners_and_refused_connections_of_one_pod_do_not_slow_others() -> Result<()> {
    let lab = builder()
        .object(
            "strict",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n",
        )
        .start()?;
    let _servers = [
        Server::start(&lab.pod("shop/db"), "db", APP)?,
        Server::start(&lab.pod("shop/victim"), "victim", APP)?,
    ];
    let before = p99(&lab)?;
    let (evil, victim) = (lab.pod("shop/evil"), lab.pod("shop/victim"));
    let mut rows = Rows::new();
    rows.row("listeners", || {
        let (processes, each) = if full() { (4, 16_250) } else { (1, 4_000) };
        let mut listening = Vec::new();
        for _ in 0..processes {
            listening.push(flood(&evil, &["listen", &each.to_string()], "listening ")?);
        }
        let served = others_are_served(&lab, before);
        listening.iter_mut().try_for_each(|process| process.kill().map(drop))?;
        served
    });
    rows.row("plaintext connections to a pod that takes none", || {
        let to = SocketAddr::new(victim.v4.into(), APP).to_string();
        let mut knocking = lab.pod("legacy/old").start("ambit-flood", &["knock", &to, "5"])?;
        let served = others_are_served(&lab, before);
        knocking.says("refused ")?;
        let line = knocking.log();
        println!("  {}", line.trim());
        let refused: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
        ensure!(line.contains("other 0"), "{line}");
        let metrics = lab.nodes[1].metrics()?;
        let counted = metrics.sum("ambit_kernel_refusals_total", &[("reason", "plaintext_refused")]);
        ensure!(counted >= refused, "{counted} of {refused} are counted");
        let lost = metrics.sum("ambit_kernel_records_lost_total", &[]);
        ensure!(lost == 0.0, "{lost} records of established connections were lost");
        served
    });
    rows.finish();
    lab.finish()
}

#[test]
fn node_with_many_addresses_serves_its_pods() -> Result<()> {
    let lab = builder().start()?;
    let _server = Server::start(&lab.pod("shop/db"), "db", APP)?;
    let count: u32 = if full() { 20_000 } else { 1_100 };
    let node = &lab.nodes[0];
    let lines: Vec<String> = (0..count)
        .map(|index| {
            format!("addr add 10.{}.{}.{}/32 dev lo", 128 + (index >> 16), (index >> 8) & 255, index & 255)
        })
        .collect();
    let file = lab.dir().join("addresses");
    std::fs::write(&file, lines.join("\n") + "\n")?;
    let added = node.place.output("ip", &["-batch", &file.display().to_string()])?;
    ensure!(added.is_empty(), "{added}");
    let mut rows = Rows::new();
    let before = p99(&lab)?;
    rows.row("addresses that appear", || others_are_served(&lab, before));
    rows.row("addresses that are there when the daemon starts", || {
        node.restart()?;
        others_are_served(&lab, before)
    });
    rows.finish();
    lab.finish()
}
