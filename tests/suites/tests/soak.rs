//! Churn for a minute or longer: connections on every path, pods that come and go, policies that change, a
//! controller that restarts and connections to it that break. After each round all daemons hold what they
//! held before, and memory does not grow with the rounds.
//!
//! Longer with `AMBIT_SOAK=<minutes>`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ambit_harness::{Family, Lab, Pod, PodSpec, eventually};
use ambit_suites::churn::{self, Stint};
use ambit_suites::every_path;
use ambit_suites::paths::{enforces, policies, policy_in_force, warm};
use ambit_suites::slope::{Slope, slope};
use ambit_suites::{CA_DESCRIPTORS, Held, Rows, Server};
use anyhow::{Context, Result, ensure};

/// How long by default.
const USUAL: Duration = Duration::from_mins(1);
/// The fewest rounds that give a slope.
const FEWEST: usize = 12;
/// How long a connection to the controller must have lasted to be made again at once when it breaks.
const LASTED: Duration = Duration::from_secs(16);
/// Connections on each of the addresses in a round.
const EACH: usize = 100;

/// Bytes of memory that a connection may leave behind at a ztunnel. One that is forgotten anywhere leaves at
/// least its facts (two socket addresses, two names, two identities, two counters: more than 200 bytes), and
/// a task that never ends some thousand. Below that is what the allocator needs until it has seen every mix
/// of sizes: measured 3 to 10 bytes in the first minutes, and ever less.
const PER_CONNECTION: f64 = 64.0;
/// The same for a round at the controller, which has no connections to carry: two changes of policy, and now
/// and then two new streams of daemons. Measured 3 to 10 KiB in the first minutes, and ever less; a stream
/// that is never ended keeps some ten KiB of buffers.
const PER_ROUND: f64 = 24.0 * 1024.0;

/// A policy that selects the database and denies only sources that do not exist.
const PASSING: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: \
                       shop, name: passing}\nspec: {selector: {matchLabels: {app: db}}, action: DENY, \
                       rules: [{from: [{source: {namespaces: [nowhere]}}]}]}\n";

fn lab() -> Result<(Lab, Vec<Server>)> {
    let builder =
        every_path::builder().pod(PodSpec::new("shop/guest-0")).pod(PodSpec::new("shop/guest-1").node(1));
    every_path::start(builder, &["shop/guest-0", "shop/guest-1"])
}

/// By tunnel, direct, native and checked, over both families; and from and to the guests.
fn traffic(lab: &Lab) -> Vec<Stint> {
    let at = |pod: &str, family| every_path::at_pod(lab, pod, family);
    let service = |family| every_path::at_service(lab, family);
    let mut stints = Vec::new();
    for family in Family::BOTH {
        let pairs = [
            ("shop/far", service(family), 1),
            ("shop/near", service(family), 1),
            ("shop/near", at("shop/db", family), 1),
            ("legacy/old", at("shop/db", family), 1),
            ("legacy/old", at("shop/checked", family), 1),
            ("shop/guest-0", at("shop/guest-1", family), 10),
            ("shop/guest-1", service(family), 10),
        ];
        stints.extend(pairs.map(|(from, to, share)| Stint {
            from: lab.pod(from).place,
            to,
            connections: EACH / share,
            payload: 500,
        }));
    }
    stints
}

/// What breaks the daemons' connections to their controller in a round.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Break {
    Nothing,
    /// The connections of both are cut.
    Connections,
    Restart,
}

/// One round: traffic, a policy that comes and goes, a break, guests that leave and come back.
fn round(lab: &Lab, broken: Break) -> Result<()> {
    churn::run(&traffic(lab))?;
    lab.apply("passing", PASSING)?;
    policy_in_force(lab, "shop/db", "shop/passing", true)?;
    match broken {
        Break::Nothing => {}
        Break::Connections => {
            let mut kill = lab.control().command("ss");
            kill.args(["--kill", "--no-header", "--tcp", "sport", "=", "15012"]);
            let killed = kill.output().context("failed to run ss")?;
            ensure!(killed.status.success(), "ss: {}", String::from_utf8_lossy(&killed.stderr));
            ensure!(!killed.stdout.is_empty(), "ss has killed no connection");
        }
        Break::Restart => {
            lab.controller.stop()?;
            lab.start_controller()?;
        }
    }
    connected(lab)?;
    lab.remove("passing")?;
    for node in &lab.nodes {
        enforces(node, "no passing policy", |dump| {
            ensure!(!policies(dump).contains(&"shop/passing"));
            Ok(())
        })?;
    }
    // Pods leave and come back.
    for number in 0..2 {
        let guest = lab.pod(&format!("shop/guest-{number}"));
        lab.node_of(&guest).release(&guest)?;
        lab.node_of(&guest).enrol(&guest)?;
    }
    let guests = [0, 1].map(|number| lab.pod(&format!("shop/guest-{number}")));
    enrolled(lab, &guests)?;
    // The kernel has the same cached verdicts at each round's end.
    for (client, to) in directs(lab) {
        warm(&lab.nodes[1], &client, to)?;
    }
    Ok(())
}

fn directs(lab: &Lab) -> Vec<(Pod, SocketAddr)> {
    let mut pairs = Vec::new();
    for family in Family::BOTH {
        let service = every_path::at_service(lab, family);
        pairs.extend(["shop/near", "shop/guest-1"].map(|client| (lab.pod(client), service)));
    }
    pairs
}

fn connected(lab: &Lab) -> Result<()> {
    eventually("the daemons are connected", || {
        for node in &lab.nodes {
            ensure!(node.config_dump()?["xds"]["connected"] == true, "{} is not", node.name);
        }
        let clients = lab.controller_metrics()?.sum("ambit_controller_xds_clients", &[]);
        ensure!((clients - 2.0).abs() < 0.5, "{clients} clients");
        Ok(())
    })
}

fn enrolled(lab: &Lab, guests: &[Pod]) -> Result<()> {
    eventually("the guests are enrolled again", || {
        for guest in guests {
            let dump = lab.node_of(guest).config_dump()?;
            let pods = dump["pods"].as_array().context("no pods")?;
            let ready = pods.iter().any(|pod| pod["uid"] == guest.spec.uid() && pod["identity"].is_string());
            ensure!(ready, "{} is not", guest.spec.key());
        }
        Ok(())
    })
}

#[test]
fn churn_does_not_grow_memory_or_descriptors() -> Result<()> {
    let time = match std::env::var("AMBIT_SOAK") {
        Ok(minutes) => Duration::from_mins(minutes.parse().context("failed to parse AMBIT_SOAK")?),
        Err(_) => USUAL,
    };
    let (lab, _servers) = lab()?;
    let daemons = [
        ("ztunnel on node0", &lab.nodes[0].ztunnel),
        ("ztunnel on node1", &lab.nodes[1].ztunnel),
        ("controller", &lab.controller),
    ];
    let connections: usize = traffic(&lab).iter().map(|stint| stint.connections).sum();
    let began = Instant::now();
    // In the first third everything reaches the size it has for good: the runtime's and the allocator's
    // caches, the ring of recent connections, the label sets of metrics. It is not judged, and the
    // controller restarts in it.
    let mut warming = 0;
    while warming < FEWEST / 3 || began.elapsed() < time / 3 {
        round(&lab, if warming % 4 == 0 { Break::Restart } else { Break::Nothing })?;
        warming += 1;
    }
    round(&lab, Break::Nothing)?;
    let held: Vec<Held> = lab.nodes.iter().map(Held::at_rest).collect::<Result<_>>()?;
    let before: Vec<(u64, u64)> = daemons
        .iter()
        .map(|(_, daemon)| Ok((daemon.descriptors()?, daemon.threads()?)))
        .collect::<Result<_>>()?;
    println!("{warming} rounds to warm up; held: {held:?}; descriptors and threads: {before:?}");

    let mut memory = vec![Vec::new(); daemons.len()];
    let (mut rounds, mut breaks, mut broken) = (0, 0, Instant::now());
    while rounds < FEWEST || began.elapsed() < time {
        if broken.elapsed() > LASTED {
            round(&lab, Break::Connections)?;
            (breaks, broken) = (breaks + 1, Instant::now());
        } else {
            round(&lab, Break::Nothing)?;
        }
        rounds += 1;
        for (node, held) in lab.nodes.iter().zip(&held) {
            held.again_but_for_the_ca(node).with_context(|| format!("after round {rounds}"))?;
        }
        for ((name, daemon), (descriptors, _)) in daemons.iter().zip(&before) {
            eventually(&format!("{name} has the descriptors it had"), || {
                let now = daemon.descriptors()?;
                let more = now.abs_diff(*descriptors);
                // Two at the controller: of each node's daemon one.
                ensure!(more <= 2 * CA_DESCRIPTORS, "{descriptors} before, {now} after round {rounds}");
                Ok(())
            })?;
        }
        for (memory, (_, daemon)) in memory.iter_mut().zip(&daemons) {
            #[expect(clippy::cast_precision_loss, reason = "some thousand KiB")]
            memory.push(daemon.heap()? as f64 * 1024.0);
        }
    }
    println!("{rounds} rounds of {connections} connections, {breaks} breaks, in {:.0?}", began.elapsed());
    // The runtime ends threads for blocking work when they have had none for some time.
    for ((name, daemon), (_, threads)) in daemons.iter().zip(&before) {
        eventually(&format!("{name} has no more threads than before"), || {
            let now = daemon.threads()?;
            ensure!(now <= *threads, "{threads} before, {now} at the end");
            Ok(())
        })?;
    }
    let allowed = PER_CONNECTION * f64::from(u32::try_from(connections)?);
    let mut table = Rows::new();
    for (((name, _), memory), allowed) in daemons.iter().zip(&memory).zip([allowed, allowed, PER_ROUND]) {
        table.row(name, || {
            let kib = memory.iter().map(|bytes| bytes / 1024.0).collect::<Vec<_>>();
            let Slope { low, median, high } = slope(memory).context("too few rounds")?;
            println!(
                "{name}: {median:.0} bytes a round, 95 % between {low:.0} and {high:.0}; {allowed:.0} would \
                 be growth; KiB: {kib:.0?}"
            );
            // The lower end: a single step upwards in the middle widens the interval and is no growth.
            ensure!(low <= allowed, "it grows by {low:.0} to {high:.0} bytes a round");
            Ok(())
        });
    }
    table.finish();
    lab.finish()
}
