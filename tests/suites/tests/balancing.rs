//! Which endpoint serves a connection, and what happens when one fails: the shares of the kernel's choice and
//! the daemon's, session affinity, near before far, endpoints that cannot be reached, readiness.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ambit_harness::{Family, Lab, NamespaceSpec, Node, Place, PodSpec, ServiceSpec, eventually};
use ambit_suites::paths::{enforces, no_policy_in_force, policy_in_force, warm};
use ambit_suites::shares::{Counts, fit, homogeneity};
use ambit_suites::shop::FAMILIES;
use ambit_suites::{Rows, Server, TIMEOUT, ask, connect};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Where the servers listen, and the port of the services.
const APP: u16 = 7000;
const FRONT: u16 = 80;

/// Of each choice in the test of shares.
const DRAWS: usize = 1200;
/// Enough that an endpoint with a third of the choices is missed once in ten million times.
const LOOK: usize = 40;

/// A service of the shop for the pods with a label.
fn service(name: &str, label: &str) -> ServiceSpec {
    ServiceSpec::new(&format!("shop/{name}")).selects_label(label, "yes").port(FRONT, APP)
}

fn pod(name: &str, node: usize) -> PodSpec {
    PodSpec::new(&format!("shop/{name}")).node(node)
}

/// A server in each of these pods of the shop, which greets with the pod's name.
fn serve(lab: &Lab, pods: &[&str]) -> Result<Vec<Server>> {
    pods.iter().map(|name| Server::start(&lab.pod(&format!("shop/{name}")), name, APP)).collect()
}

fn at(lab: &Lab, service: &str, family: Family) -> SocketAddr {
    SocketAddr::new(lab.service(&format!("shop/{service}"), family), FRONT)
}

/// So many connections, one after the other, each of which must be answered: who answered how often.
fn draw(client: &Place, to: SocketAddr, times: usize) -> Result<Counts> {
    Ok(counts(&greetings(client, to, times)?))
}

/// The same, one by one: who answered, and the client's port.
fn greetings(client: &Place, to: SocketAddr, times: usize) -> Result<Vec<(String, u16)>> {
    let one = |number| greeting(to).with_context(|| format!("connection {number} to {to}"));
    client.run(|| (0..times).map(one).collect())?
}

fn greeting(to: SocketAddr) -> Result<(String, u16)> {
    let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let port = stream.local_addr()?.port();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("no greeting")?;
    Ok((line.split_whitespace().next().context("an empty greeting")?.to_owned(), port))
}

fn counts(greetings: &[(String, u16)]) -> Counts {
    let mut counts = Counts::new();
    for (server, _) in greetings {
        *counts.entry(server.clone()).or_default() += 1;
    }
    counts
}

/// Requires that these answer, each of them, and nobody else.
fn served_by(client: &Place, to: SocketAddr, expected: &[&str]) -> Result<()> {
    let times = if expected.len() > 1 { LOOK } else { 10 };
    let counts = draw(client, to, times)?;
    let found: BTreeSet<&str> = counts.keys().map(String::as_str).collect();
    ensure!(found == expected.iter().copied().collect(), "{counts:?} instead of {expected:?}");
    Ok(())
}

/// Requires that a connection is refused because nobody may serve it, and that the client's daemon says so.
fn nobody_serves(node: &Node, client: &Place, to: SocketAddr) -> Result<()> {
    let mark = node.ztunnel.log_mark();
    ensure!(ask(client, to).is_err(), "somebody answers");
    let record = failure(node, mark, "no_endpoint")?;
    ensure!(record["error"].as_str().is_some_and(|error| error.contains("no ready endpoint")), "{record}");
    ensure!(record["dst.addr"] == to.to_string().as_str(), "{record}");
    Ok(())
}

/// The record of an outbound connection since a mark that could not be made, for this reason.
fn failure(node: &Node, mark: u64, reason: &str) -> Result<Value> {
    eventually(&format!("the daemon says {reason}"), || {
        let records = outbound(node, mark);
        let found = records.iter().find(|record| record["reason"] == reason);
        found.cloned().with_context(|| format!("{records:?}"))
    })
}

/// A client's daemon's records since a mark.
fn outbound(node: &Node, mark: u64) -> Vec<Value> {
    let records = node.records_since(mark);
    records.into_iter().filter(|record| record["direction"] == "outbound").collect()
}

/// Draws, and requires that the connections to these pods were all direct and all others in tunnels: where
/// there are such pods, and the pairs are warm, the kernel chose and nobody chose again.
fn draw_and_trace(
    node: &Node,
    client: &Place,
    to: SocketAddr,
    times: usize,
    local: &[&str],
) -> Result<Counts> {
    let mark = node.ztunnel.log_mark();
    let greetings = greetings(client, to, times)?;
    let path = |server: &str| if local.contains(&server) { "direct" } else { "tunnel" };
    // A port may be used twice, towards different endpoints.
    let mut wanted = BTreeMap::<Way, usize>::new();
    for (server, port) in &greetings {
        *wanted.entry((*port, server.clone(), path(server).to_owned())).or_default() += 1;
    }
    eventually(&format!("all connections to {local:?} are direct, all others are not"), || {
        let mut missing = wanted.clone();
        for way in outbound(node, mark).iter().filter_map(way) {
            missing.entry(way).and_modify(|count| *count = count.saturating_sub(1));
        }
        missing.retain(|_, count| *count > 0);
        let some = missing.keys().next();
        ensure!(missing.is_empty(), "{} of {times} are not reported, as {some:?}", missing.len());
        Ok(())
    })?;
    Ok(counts(&greetings))
}

/// From which of the client's ports to which workload a connection went, by which path.
type Way = (u16, String, String);

fn way(record: &Value) -> Option<Way> {
    let field = |name: &str| Some(record[name].as_str()?.to_owned());
    let client: SocketAddr = field("src.addr")?.parse().ok()?;
    Some((client.port(), field("dst.workload")?, field("path")?))
}

/// Waits until the kernel has a yes for each of these pods of the client's node.
fn warm_all(lab: &Lab, client: &Place, family: Family, pods: &[&str]) -> Result<()> {
    pods.iter().try_for_each(|name| {
        let pod = lab.pod(&format!("shop/{name}"));
        warm(lab.node_of(&pod), client, SocketAddr::new(pod.ip(family), APP))
    })
}

/// Makes a pod ready or unready, and waits until every daemon acts by that.
fn set_ready(lab: &Lab, name: &str, ready: bool) -> Result<()> {
    let mut spec = lab.pod(&format!("shop/{name}")).spec;
    spec.ready = ready;
    let uid = spec.uid();
    lab.update_pod(spec)?;
    everywhere(lab, &format!("{name} ready: {ready}"), |dump| {
        let found = workload(dump, &uid).with_context(|| format!("{uid} is not known"))?;
        ensure!(found["healthy"] == ready, "{found}");
        Ok(())
    })
}

/// Waits until every daemon's state is as wanted, and in force.
fn everywhere(lab: &Lab, what: &str, check: impl Fn(&Value) -> Result<()>) -> Result<()> {
    lab.nodes.iter().try_for_each(|node| enforces(node, what, &check))
}

fn workload<'a>(dump: &'a Value, uid: &str) -> Option<&'a Value> {
    dump["workloads"].as_array()?.iter().find(|workload| workload["uid"] == uid)
}

/// A service whose endpoints must get their shares.
struct Shares {
    name: &'static str,
    service: &'static str,
    family: Family,
    weights: &'static [(&'static str, u32)],
    /// Those on the client's node.
    local: &'static [&'static str],
}

const SHARES: [Shares; 4] = [
    Shares {
        name: "alike, IPv4",
        service: "even",
        family: Family::V4,
        weights: EVEN,
        local: &["a", "b", "c"],
    },
    Shares {
        name: "alike, IPv6",
        service: "even",
        family: Family::V6,
        weights: EVEN,
        local: &["a", "b", "c"],
    },
    Shares {
        name: "by weight",
        service: "weighted",
        family: Family::V4,
        weights: &[("a", 1), ("b", 3), ("c", 6)],
        local: &["a", "b", "c"],
    },
    Shares {
        name: "on both nodes, by weight, IPv6",
        service: "mixed",
        family: Family::V6,
        weights: &[("a", 1), ("b", 1), ("d", 1), ("e", 3)],
        local: &["a", "b"],
    },
];

const EVEN: &[(&str, u32)] = &[("a", 1), ("b", 1), ("c", 1)];

/// Workload entries give pods weights.
fn weights(lab: &Lab) -> String {
    let entry = |(name, label, pod, weight, family)| {
        let address = lab.pod(&format!("shop/{pod}")).ip(family);
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  namespace: shop\n  \
             name: {name}\nspec:\n  address: \"{address}\"\n  weight: {weight}\n  labels: {{{label}: \
             \"yes\"}}\n"
        )
    };
    let entries = [
        ("b3", "weighted", "b", 3, Family::V4),
        ("c6", "weighted", "c", 6, Family::V4),
        ("e3", "mixed", "e", 3, Family::V6),
    ];
    entries.map(entry).concat()
}

#[test]
fn shares_of_the_kernel_and_the_daemon_agree() -> Result<()> {
    // The third node has no endpoint, so that its kernel has nothing to choose from.
    let lab = Lab::builder()
        .nodes(3)
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(pod("web", 0))
        .pod(pod("tunnelled", 0).label("ambit.dev/direct", "disabled"))
        .pod(pod("a", 0).label("even", "yes").label("weighted", "yes").label("mixed", "yes"))
        .pod(pod("b", 0).label("even", "yes").label("mixed", "yes"))
        .pod(pod("c", 0).label("even", "yes"))
        .pod(pod("d", 1).label("mixed", "yes"))
        .pod(pod("e", 1))
        .pod(pod("far", 2))
        .service(service("even", "even"))
        .service(service("weighted", "weighted"))
        .service(service("mixed", "mixed"))
        .start()?;
    let _servers = serve(&lab, &["a", "b", "c", "d", "e"])?;
    lab.apply("weights", &weights(&lab))?;
    everywhere(&lab, "the weights", |dump| {
        let names = ["b3", "c6", "e3"];
        let uid = |name| format!("Kubernetes/networking.istio.io/WorkloadEntry/shop/{name}");
        ensure!(names.iter().all(|name| workload(dump, &uid(name)).is_some()), "not all are known");
        Ok(())
    })?;
    let tables = |node: &Node| anyhow::Ok(node.map_entries()?.get("SERVICES").copied().unwrap_or_default());
    ensure!(tables(&lab.nodes[2])? == 0, "the third node's kernel chooses too");
    ensure!(
        tables(&lab.nodes[0])? == 6,
        "the first node's kernel does not choose: {:?}",
        lab.nodes[0].map_entries()?
    );

    let mut table = Rows::new();
    for case in &SHARES {
        table.row(case.name, || agree(&lab, case));
    }
    table.finish();
    lab.finish()
}

/// Who chooses: the kernel; the kernel where the direct path is switched off, so that the daemon gets the
/// choice to carry it out; the daemon.
const WHO: [&str; 3] = ["kernel", "kernel, in tunnels", "daemon"];

/// By chance a statistic is too great once in a thousand samples. Then there are second samples; wrong shares
/// are wrong there too.
fn agree(lab: &Lab, case: &Shares) -> Result<()> {
    let [web, tunnelled, far] = ["shop/web", "shop/tunnelled", "shop/far"].map(|pod| lab.pod(pod));
    let to = at(lab, case.service, case.family);
    warm_all(lab, &web, case.family, case.local)?;
    let mut statistics = String::new();
    for _ in 0..2 {
        let samples = [
            draw_and_trace(&lab.nodes[0], &web, to, DRAWS, case.local)?,
            draw_and_trace(&lab.nodes[0], &tunnelled, to, DRAWS, &[])?,
            draw_and_trace(&lab.nodes[2], &far, to, DRAWS, &[])?,
        ];
        let mut all = vec![("kernel against daemon", homogeneity(&samples[0], &samples[2])?)];
        for (who, sample) in WHO.into_iter().zip(&samples) {
            println!("{}: {who}: {sample:?}", case.name);
            all.push((who, fit(sample, case.weights)?));
        }
        statistics = all.iter().map(|(who, chi)| format!("{who} {chi}")).collect::<Vec<_>>().join("; ");
        println!("{}: chi-square: {statistics}", case.name);
        if case.service == "weighted" {
            let even = fit(&samples[0], EVEN)?;
            ensure!(!even.agrees(), "the test does not tell weights from none: {even}");
        }
        if all.iter().all(|(_, chi)| chi.agrees()) {
            return Ok(());
        }
    }
    bail!("twice in a row: {statistics}")
}

/// Clients of the service with affinity, on both nodes in turn.
const CLIENTS: usize = 10;

/// Which endpoint each client has: by connections over both families, which must all come to the same.
fn assignment(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for client in (0..CLIENTS).map(|number| format!("client-{number}")) {
        let place = lab.pod(&format!("shop/{client}"));
        let mut servers = BTreeSet::new();
        for family in FAMILIES {
            servers.extend(draw(&place, at(lab, "cart", family), 5)?.into_keys());
        }
        ensure!(servers.len() == 1, "{client} has {servers:?}");
        found.extend(servers.pop_first().map(|server| (client, server)));
    }
    Ok(found)
}

#[test]
fn clients_with_affinity_keep_their_endpoint() -> Result<()> {
    let mut lab = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(pod("cart-1", 0).label("cart", "yes"))
        .pod(pod("cart-2", 0).label("cart", "yes"))
        .pod(pod("cart-3", 1).label("cart", "yes"))
        .service(service("cart", "cart").field("sessionAffinity", "ClientIP"));
    for number in 0..CLIENTS {
        lab = lab.pod(pod(&format!("client-{number}"), number % 2));
    }
    let lab = lab.start()?;
    let _servers = serve(&lab, &["cart-1", "cart-2", "cart-3"])?;
    let mut table = Rows::new();
    let first = assignment(&lab)?;
    println!("{first:?}");
    let clients_of = |server: &str| -> Vec<String> {
        first.iter().filter(|(_, own)| *own == server).map(|(client, _)| client.clone()).collect()
    };
    table.row("clients spread", || {
        let used: BTreeSet<&String> = first.values().collect();
        ensure!(used.len() == 3, "{first:?}");
        Ok(())
    });
    table.row("the kernel keeps to it", || by_kernel_too(&lab, &first));
    table.row("over a restart of the daemons", || {
        lab.nodes.iter().try_for_each(Node::restart)?;
        let now = assignment(&lab)?;
        ensure!(now == first, "{now:?}");
        by_kernel_too(&lab, &first)
    });
    table.row(
        "an endpoint that is not ready loses its clients, and nobody else does; it has them back",
        || {
            set_ready(&lab, "cart-1", false)?;
            moved(&lab, &first, &clients_of("cart-1"))?;
            set_ready(&lab, "cart-1", true)?;
            let now = assignment(&lab)?;
            ensure!(now == first, "{now:?}");
            by_kernel_too(&lab, &first)
        },
    );
    table.row("one that goes away too", || {
        let spec = lab.pod("shop/cart-3").spec;
        let known = |wanted| {
            everywhere(&lab, &format!("cart-3 exists: {wanted}"), |dump| {
                ensure!(workload(dump, &spec.uid()).is_some() == wanted, "not yet");
                Ok(())
            })
        };
        lab.remove("pod-shop-cart-3")?;
        known(false)?;
        moved(&lab, &first, &clients_of("cart-3"))?;
        lab.update_pod(spec.clone())?;
        known(true)?;
        let now = assignment(&lab)?;
        ensure!(now == first, "{now:?}");
        Ok(())
    });
    table.finish();
    lab.finish()
}

/// Requires that of all clients these and only these have another endpoint than at first.
fn moved(lab: &Lab, first: &BTreeMap<String, String>, clients: &[String]) -> Result<()> {
    let now = assignment(lab)?;
    let moved: Vec<String> = first.keys().filter(|client| first[*client] != now[*client]).cloned().collect();
    ensure!(!moved.is_empty() && moved == clients, "{moved:?} moved instead of {clients:?}: {now:?}");
    Ok(())
}

/// Requires that those whose endpoint is on their own node get there directly, and still to the same.
fn by_kernel_too(lab: &Lab, first: &BTreeMap<String, String>) -> Result<()> {
    let mut direct = 0;
    for (client, server) in first {
        let (place, endpoint) = (lab.pod(&format!("shop/{client}")), lab.pod(&format!("shop/{server}")));
        if place.spec.node != endpoint.spec.node {
            continue;
        }
        let node = lab.node_of(&place);
        for family in FAMILIES {
            let to = at(lab, "cart", family);
            warm(node, &place, to)?;
            let counts = draw_and_trace(node, &place, to, 10, &[server])?;
            ensure!(counts.len() == 1 && counts.contains_key(server), "{client}: {counts:?}");
            direct += 1;
        }
    }
    ensure!(direct > 0, "no client is on its endpoint's node");
    Ok(())
}

/// Two zones of a region: the first two nodes, and the third.
fn zones() -> String {
    let node = |(index, zone)| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node{index}\n  labels:\n    \
             topology.kubernetes.io/region: north\n    topology.kubernetes.io/zone: {zone}\n"
        )
    };
    [(0, "one"), (1, "one"), (2, "two")].map(node).concat()
}

/// Whom a client gets from a service; nobody: it is refused.
type Near = (&'static str, &'static str, &'static [&'static str]);

const ALL_READY: &[Near] = &[
    ("web", "any", &["here", "zone", "away"]),
    ("web", "local", &["here"]),
    ("web", "same-node", &["here"]),
    ("web", "same-zone", &["here", "zone"]),
    ("web", "close", &["here", "zone"]),
    ("far", "any", &["here", "zone", "away"]),
    ("far", "local", &["away"]),
    ("far", "same-node", &["away"]),
    ("far", "same-zone", &["away"]),
    // On the second node, and of the second zone by its own word.
    ("guest", "local", &["zone"]),
    ("guest", "same-node", &["away"]),
    ("guest", "same-zone", &["away"]),
];

const HERE_UNREADY: &[Near] = &[
    ("web", "any", &["zone", "away"]),
    ("web", "local", &[]),
    ("web", "same-node", &["zone"]),
    ("web", "same-zone", &["zone"]),
    ("web", "close", &["zone"]),
    ("far", "local", &["away"]),
    ("guest", "local", &["zone"]),
];

const ZONE_UNREADY: &[Near] = &[
    ("web", "any", &["away"]),
    ("web", "local", &[]),
    ("web", "same-node", &["away"]),
    ("web", "same-zone", &["away"]),
    ("far", "same-zone", &["away"]),
    ("guest", "local", &[]),
];

const AWAY_UNREADY: &[Near] = &[
    ("far", "any", &["here", "zone"]),
    ("far", "local", &[]),
    ("far", "same-node", &["here", "zone"]),
    ("far", "same-zone", &["here", "zone"]),
    ("guest", "same-zone", &["here", "zone"]),
    ("web", "same-zone", &["here", "zone"]),
];

#[test]
fn near_endpoints_come_first() -> Result<()> {
    let lab = Lab::builder()
        .nodes(3)
        .object("nodes", &zones())
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(pod("web", 0))
        .pod(pod("guest", 1).label("topology.kubernetes.io/zone", "two"))
        .pod(pod("far", 2))
        .pod(pod("here", 0).label("cart", "yes"))
        .pod(pod("zone", 1).label("cart", "yes"))
        .pod(pod("away", 2).label("cart", "yes"))
        .service(service("any", "cart"))
        .service(service("local", "cart").field("internalTrafficPolicy", "Local"))
        .service(service("same-node", "cart").field("trafficDistribution", "PreferSameNode"))
        .service(service("same-zone", "cart").field("trafficDistribution", "PreferSameZone"))
        .service(service("close", "cart").field("trafficDistribution", "PreferClose"))
        .start()?;
    let _servers = serve(&lab, &["here", "zone", "away"])?;
    let mut table = Rows::new();
    near(&lab, &mut table, "all ready", ALL_READY);
    // The kernel chooses by the same rules.
    for (service, local) in [("any", "here"), ("local", "here"), ("same-node", "here"), ("same-zone", "here")]
    {
        table.row(&format!("in the kernel, {service}"), || {
            let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
            FAMILIES.iter().try_for_each(|family| {
                let to = at(&lab, service, *family);
                warm_all(&lab, &web, *family, &[local])?;
                let counts = draw_and_trace(node, &web, to, LOOK, &[local])?;
                let wanted =
                    ALL_READY.iter().find(|row| (row.0, row.1) == ("web", service)).context("a row")?;
                ensure!(counts.keys().all(|name| wanted.2.contains(&name.as_str())), "{counts:?}");
                Ok(())
            })
        });
    }
    table.row("here is not ready", || set_ready(&lab, "here", false));
    near(&lab, &mut table, "here is not ready", HERE_UNREADY);
    table.row("nor is the zone's", || set_ready(&lab, "zone", false));
    near(&lab, &mut table, "nobody in the zone is ready", ZONE_UNREADY);
    table.row("both are back", || set_ready(&lab, "here", true).and_then(|()| set_ready(&lab, "zone", true)));
    near(&lab, &mut table, "all ready again", ALL_READY);
    table.row("away is not ready", || set_ready(&lab, "away", false));
    near(&lab, &mut table, "nobody away is ready", AWAY_UNREADY);
    table.finish();
    lab.finish()
}

fn near(lab: &Lab, table: &mut Rows, state: &str, rows: &[Near]) {
    for (index, (client, service, expected)) in rows.iter().enumerate() {
        // In turn, so that each state is seen over both families.
        let family = FAMILIES[index % 2];
        table.row(&format!("{state}: {client} asks {service} over {family:?}"), || {
            let (place, to) = (lab.pod(&format!("shop/{client}")), at(lab, service, family));
            match expected {
                [] => nobody_serves(lab.node_of(&place), &place, to),
                _ => served_by(&place, to, expected),
            }
        });
    }
}

/// A connection with its greeting read.
struct Open {
    name: String,
    stream: BufReader<TcpStream>,
}

impl Open {
    fn new(client: &Place, to: SocketAddr) -> Result<Self> {
        let mut stream = BufReader::new(connect(client, to)?);
        let mut line = String::new();
        stream.read_line(&mut line).context("no greeting")?;
        let name = line.split_whitespace().next().context("an empty greeting")?.to_owned();
        Ok(Self { name, stream })
    }

    fn echo(&mut self) -> Result<()> {
        let said = b"still there?";
        self.stream.get_mut().write_all(said)?;
        let mut heard = [0; 12];
        self.stream.read_exact(&mut heard).with_context(|| format!("{} does not answer", self.name))?;
        ensure!(heard == *said);
        Ok(())
    }
}

#[test]
fn who_is_not_ready_gets_no_new_connections_and_keeps_its_open_ones() -> Result<()> {
    let lab = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(pod("web", 0))
        .pod(pod("near", 0).label("cart", "yes"))
        .pod(pod("far", 1).label("cart", "yes"))
        .service(service("cart", "cart"))
        .service(service("eager", "cart").field("publishNotReadyAddresses", "true"))
        .start()?;
    let _servers = serve(&lab, &["near", "far"])?;
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    let mut table = Rows::new();
    for family in FAMILIES {
        table.row(&format!("{family:?}"), || {
            let to = at(&lab, "cart", family);
            warm_all(&lab, &web, family, &["near"])?;
            let mut open = Vec::<Open>::new();
            while !["near", "far"].iter().all(|name| open.iter().any(|open| open.name == *name)) {
                ensure!(open.len() < LOOK, "one of them gets nothing");
                open.push(Open::new(&web, to)?);
            }
            let mut all_live = || open.iter_mut().try_for_each(Open::echo);
            all_live()?;

            set_ready(&lab, "near", false)?;
            served_by(&web, to, &["far"])?;
            all_live().context("near is not ready")?;

            set_ready(&lab, "far", false)?;
            nobody_serves(node, &web, to)?;
            all_live().context("nobody is ready")?;
            served_by(&web, at(&lab, "eager", family), &["near", "far"])
                .context("not ready and published")?;

            set_ready(&lab, "near", true)?;
            served_by(&web, to, &["near"])?;
            set_ready(&lab, "far", true)?;
            served_by(&web, to, &["near", "far"])?;
            all_live().context("everybody is ready again")
        });
    }
    table.finish();
    lab.finish()
}

/// How long the daemon may take to make a connection, by default; and longer than that nobody waits here.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The shop's cart on three nodes, one endpoint on the client's own.
fn fragile(ejection: &str) -> Result<(Lab, BTreeMap<&'static str, Server>)> {
    let lab = Lab::builder()
        .nodes(3)
        .daemon_config(&format!("ejection: {{{ejection}}}"))
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(pod("web", 0))
        .pod(pod("near", 0).label("cart", "yes"))
        .pod(pod("far", 1).label("cart", "yes"))
        .pod(pod("away", 2).label("cart", "yes"))
        .pod(pod("alone", 1))
        .service(service("cart", "cart"))
        .service(ServiceSpec::new("shop/alone").port(FRONT, APP))
        .start()?;
    let names = ["near", "far", "away"];
    let servers = names.into_iter().zip(serve(&lab, &names)?).collect();
    Ok((lab, servers))
}

/// Who is ejected, as the client's daemon shows it.
fn ejected(node: &Node) -> Result<Vec<String>> {
    let dump = node.config_dump()?;
    let all = dump["ejected"].as_array().context("a list of the ejected")?;
    let name = |entry: &Value| {
        ensure!(entry["service"] == "shop/cart.shop.svc.cluster.local" && entry["port"] == FRONT, "{entry}");
        ensure!(entry["seconds_left"].is_f64(), "{entry}");
        Ok(entry["endpoint"].as_str().context("a name")?.rsplit('/').next().unwrap_or_default().to_owned())
    };
    all.iter().map(name).collect()
}

/// Repeats until there is something, and fails at once where something fails.
fn until<T>(what: &str, mut step: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    eventually(what, || match step() {
        Ok(Some(found)) => Ok(Ok(found)),
        Ok(None) => bail!("not yet"),
        Err(error) => Ok(Err(error)),
    })?
}

/// How often the client's daemon has ejected somebody, and how many are ejected.
fn ejections(node: &Node) -> Result<[f64; 2]> {
    let metrics = node.metrics()?;
    Ok(["ambit_endpoint_ejections_total", "ambit_endpoints_ejected"].map(|name| metrics.sum(name, &[])))
}

/// Connects until an endpoint is ejected. Every connection must be answered, by another, in time; several at
/// once, since some have to wait.
fn until_ejected(lab: &Lab, to: SocketAddr, name: &str) -> Result<()> {
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    let mark = node.ztunnel.log_mark();
    let [before, _] = ejections(node)?;
    let mut slowest = Duration::ZERO;
    until(&format!("{name} is ejected"), || {
        for (server, took) in at_once(&web, to)? {
            ensure!(server != name && took < CONNECT_TIMEOUT, "{server} answered after {took:?}");
            slowest = slowest.max(took);
        }
        Ok(says(node, mark, "endpoint ejected", name).then_some(()))
    })?;
    println!("{name} is ejected; the slowest connection took {slowest:.1?}");
    ensure!(ejections(node)?[0] > before, "it is not counted");
    Ok(())
}

/// Waits until the kernel leaves every choice to the daemon.
fn no_choice_in_the_kernel(node: &Node) -> Result<()> {
    eventually("the kernel has no table", || {
        let found = node.map_entries()?.get("SERVICES").copied();
        ensure!(found == Some(0), "{found:?}");
        Ok(())
    })
}

/// Several connections at once: who answered, and when.
fn at_once(client: &Place, to: SocketAddr) -> Result<Vec<(String, Duration)>> {
    let ask = || {
        let began = Instant::now();
        anyhow::Ok((Open::new(client, to)?.name, began.elapsed()))
    };
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
        let answers = asking.into_iter().map(std::thread::ScopedJoinHandle::join);
        answers.map(|one| one.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Whether a daemon's log has said this of an endpoint since a mark.
fn says(node: &Node, mark: u64, what: &str, name: &str) -> bool {
    let endpoint = format!("Pod/shop/{name}\"");
    node.ztunnel.log_since(mark).lines().any(|line| line.contains(what) && line.contains(&endpoint))
}

/// Connects until an endpoint serves again.
fn until_back(lab: &Lab, to: SocketAddr, name: &str) -> Result<()> {
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    until(&format!("{name} serves again"), || Ok(draw(&web, to, 10)?.contains_key(name).then_some(())))?;
    eventually("nobody is ejected", || {
        let (all, [_, now]) = (ejected(node)?, ejections(node)?);
        ensure!(all.is_empty() && now.abs() < f64::EPSILON, "{all:?}, {now}");
        Ok(())
    })
}

#[test]
fn what_cannot_be_reached_is_left_out() -> Result<()> {
    let (lab, mut servers) = fragile("consecutive_failures: 2, first_seconds: 2, longest_seconds: 4")?;
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    let mut table = Rows::new();
    for family in FAMILIES {
        let to = at(&lab, "cart", family);
        table.row(&format!("all serve, {family:?}"), || {
            warm_all(&lab, &web, family, &["near"])?;
            served_by(&web, to, &["near", "far", "away"])
        });
        table.row(&format!("an application that does not listen, {family:?}"), || {
            servers.remove("far");
            until_ejected(&lab, to, "far")?;
            servers.extend(serve(&lab, &["far"])?.pop().map(|server| ("far", server)));
            until_back(&lab, to, "far")
        });
        table.row(&format!("a node that swallows all packets, {family:?}"), || {
            let route = format!("blackhole {}", lab.pod("shop/far").ip(family));
            lab.nodes[1].place.netns.ip(&format!("route add {route}\n"))?;
            let lost = until_ejected(&lab, to, "far");
            lab.nodes[1].place.netns.ip(&format!("route del {route}\n"))?;
            lost?;
            until_back(&lab, to, "far")
        });
    }
    let to = at(&lab, "cart", Family::V4);
    table.row(
        "an application on the client's own node that does not listen, before anything was direct",
        || {
            lab.update_pod(lab.pod("shop/near").spec.label("ambit.dev/direct", "disabled"))?;
            no_choice_in_the_kernel(node)?;
            servers.remove("near");
            until_ejected(&lab, to, "near")?;
            servers.extend(serve(&lab, &["near"])?.pop().map(|server| ("near", server)));
            until_back(&lab, to, "near")?;
            lab.update_pod(lab.pod("shop/near").spec.label("ambit.dev/direct", "enabled"))?;
            warm_all(&lab, &web, Family::V4, &["near"])
        },
    );
    table.row("where the path is direct, the client is told, as without a mesh", || {
        servers.remove("near");
        let refused = until("the client is told", || match Open::new(&web, to) {
            Ok(open) => {
                ensure!(open.name != "near", "it answers");
                Ok(None)
            }
            Err(error) => Ok(Some(error)),
        })?;
        let kind = refused.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{refused:#}");
        ensure!(ejected(node)?.is_empty(), "{:?}", ejected(node)?);
        servers.extend(serve(&lab, &["near"])?.pop().map(|server| ("near", server)));
        served_by(&web, to, &["near", "far", "away"])
    });
    table.row("a daemon that was killed", || {
        lab.nodes[2].ztunnel.kill()?;
        until_ejected(&lab, to, "away")?;
        lab.nodes[2].start()?;
        until_back(&lab, to, "away")
    });
    table.row("a daemon that hangs", || {
        lab.nodes[2].ztunnel.signal(Signal::SIGSTOP)?;
        let hung = until_ejected(&lab, to, "away");
        lab.nodes[2].ztunnel.signal(Signal::SIGCONT)?;
        hung?;
        until_back(&lab, to, "away")
    });
    table.row("an only endpoint is never ejected, and the client is told", || {
        let to = at(&lab, "alone", Family::V4);
        for _ in 0..4 {
            let mark = node.ztunnel.log_mark();
            ensure!(ask(&web, to).is_err(), "somebody answers");
            let record = failure(node, mark, "connect_failed")?;
            ensure!(record["dst.workload"] == "alone", "{record}");
        }
        ensure!(ejected(node)?.is_empty(), "{:?}", ejected(node)?);
        Ok(())
    });
    table.finish();
    lab.finish()
}

const DENY_AWAY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: \
                         shop, name: deny}\nspec: {selector: {matchLabels: {app: away}}, action: DENY, \
                         rules: [{}]}\n";

#[test]
fn the_ejected_serve_only_where_nobody_else_may() -> Result<()> {
    let (lab, mut servers) = fragile("consecutive_failures: 1, first_seconds: 600, longest_seconds: 600")?;
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    let to = at(&lab, "cart", Family::V4);
    let slots = |number: usize| {
        eventually(&format!("the kernel has {number} slots"), || {
            let found = node.map_entries()?.get("ENDPOINTS").copied();
            ensure!(found == Some(number), "{found:?}");
            Ok(())
        })
    };
    let mut table = Rows::new();
    // A table for each family, with a slot for each endpoint.
    table.row("all may serve", || slots(6));
    table.row("a policy's refusal is final, and no fault of the endpoint", || {
        lab.apply("deny", DENY_AWAY)?;
        policy_in_force(&lab, "shop/away", "shop/deny", true)?;
        let mark = node.ztunnel.log_mark();
        until("somebody is refused", || {
            Ok(match Open::new(&web, to) {
                Ok(open) => {
                    ensure!(open.name != "away", "it answers");
                    None
                }
                Err(_) => Some(()),
            })
        })?;
        let record = failure(node, mark, "tunnel_refused")?;
        ensure!(record["dst.workload"] == "away", "{record}");
        ensure!(ejections(node)?[0] < 1.0, "it is held against it: {:?}", ejected(node)?);
        lab.remove("deny")?;
        no_policy_in_force(&lab, "shop/away")?;
        served_by(&web, to, &["near", "far", "away"])
    });
    table.row("one is ejected, also from the kernel's tables", || {
        servers.remove("far");
        until_ejected(&lab, to, "far")?;
        ensure!(ejected(node)? == ["far"], "{:?}", ejected(node)?);
        slots(4)
    });
    table.row("it is not even tried", || {
        servers.extend(serve(&lab, &["far"])?.pop().map(|server| ("far", server)));
        for family in FAMILIES {
            served_by(&web, at(&lab, "cart", family), &["near", "away"])?;
        }
        ensure!(servers["far"].accepted() == 0, "something was sent there");
        Ok(())
    });
    table.row("it serves where nobody else may, and is in good standing again", || {
        set_ready(&lab, "near", false)?;
        set_ready(&lab, "away", false)?;
        let mark = node.ztunnel.log_mark();
        served_by(&web, to, &["far"])?;
        ensure!(says(node, mark, "endpoint may serve again", "far"), "nobody says so");
        ensure!(ejected(node)?.is_empty(), "{:?}", ejected(node)?);
        set_ready(&lab, "near", true)?;
        set_ready(&lab, "away", true)?;
        slots(6)?;
        served_by(&web, to, &["near", "far", "away"])
    });
    table.finish();
    lab.finish()
}
