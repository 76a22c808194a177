//! What the data plane needs in the kernel and in the run folder, taken away piece by piece under load: each
//! is put right within a second and named in the log, and no plaintext travels afterwards. And what the
//! kernel may do by itself ends with its daemon.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, ServiceSpec, eventually};
use ambit_suites::{MARKER, Rows, Server, ask, connect, exchange, marked_payload};
use anyhow::{Context, Result, bail, ensure};

const PORT: u16 = 7000;
const PROBE: u16 = 7001;
/// Shorter than usual, so that a test may wait for its end.
const LEASE: Duration = Duration::from_secs(4);
/// What is promised.
const IN_TIME: Duration = Duration::from_secs(1);

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  namespace: \
                      shop\n  name: strict\nspec: {mtls: {mode: STRICT}}\n";

fn lab() -> Result<(Lab, Vec<Server>)> {
    let lab = Lab::builder()
        .daemon_config(&format!("direct: {{lease_seconds: {}}}", LEASE.as_secs()))
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/near").probe(PROBE))
        .pod(PodSpec::new("shop/db").node(1))
        .pod(PodSpec::new("legacy/old"))
        .service(ServiceSpec::new("shop/db").port(80, PORT))
        .service(ServiceSpec::new("shop/near").port(80, PORT))
        .start()?;
    let servers = ["shop/db", "shop/near"].map(|pod| Server::start(&lab.pod(pod), pod, PORT));
    Ok((lab, servers.into_iter().collect::<Result<_>>()?))
}

/// Connections made one after the other, kept open whatever becomes of them.
fn crowd(lab: &Lab, to: SocketAddr, until: impl Fn() -> bool) -> Vec<TcpStream> {
    let web = lab.pod("shop/web");
    let mut open = Vec::new();
    while !until() && open.len() < 2000 {
        open.extend(connect(&web, to));
        std::thread::sleep(Duration::from_millis(2));
    }
    open
}

/// Takes something away from the client's node, under load, and asks for what is promised.
fn taken_away(lab: &Lab, kind: &str, take: impl FnOnce() -> Result<()>) -> Result<()> {
    let node = &lab.nodes[0];
    let to = SocketAddr::new(lab.pod("shop/db").ip(Family::V4), PORT);
    let mark = node.ztunnel.log_mark();
    let named = || {
        let records = node.records_since(mark);
        records.iter().any(|record| {
            record["kind"] == kind && record["message"].as_str().is_some_and(|m| m.contains("put right"))
        })
    };
    let since = Instant::now();
    take()?;
    let mut open = crowd(lab, to, named);
    let took = since.elapsed();
    let repairs: Vec<_> =
        node.records_since(mark).into_iter().filter(|record| !record["kind"].is_null()).collect();
    ensure!(named(), "not named in the log: {repairs:?}");
    println!("{kind}: put right after {took:?}");
    ensure!(took < IN_TIME, "put right after {took:?}");
    // A connection that passed meanwhile is cut with the next recheck.
    eventually("the daemon is ready again", || node.ready())?;
    std::thread::sleep(Duration::from_millis(300));

    let capture = lab.capture()?;
    for stream in &mut open {
        // What is cut fails here.
        let _ = stream.write_all(MARKER);
    }
    let service = SocketAddr::new(lab.service("shop/db", Family::V4), 80);
    for to in [to, service] {
        eventually("connections work", || exchange(&lab.pod("shop/web"), to, &marked_payload(10_000)))?;
    }
    let trace = capture.stop()?;
    ensure!(trace.holding(MARKER) == 0, "{} packets are readable", trace.holding(MARKER));
    Ok(())
}

#[test]
fn everything_taken_away_is_put_right_within_a_second() -> Result<()> {
    let (lab, _servers) = lab()?;
    let node = &lab.nodes[0];
    let near = SocketAddr::new(lab.pod("shop/near").ip(Family::V4), PORT);
    for _ in 0..3 {
        ask(&lab.pod("shop/web"), near)?;
    }
    let mut table = Rows::new();
    let maps = [
        "PODS",
        "POD_NAMES",
        "POD_FLOWS",
        "POD_HANDOFFS",
        "GENERATIONS",
        "LISTENERS",
        "DESTINATIONS",
        "LOCALS",
        "PORTS",
        "LINKS",
        "SERVICES",
        "ENDPOINTS",
    ];
    for map in maps {
        table.row(&format!("the entries of {map}"), || {
            taken_away(&lab, map, || {
                let removed = node.clear_map(map)?;
                ensure!(removed > 0, "{map} had no entry");
                Ok(())
            })
        });
        table.row(&format!("the pin of {map}"), || {
            taken_away(&lab, "pin", || Ok(std::fs::remove_file(node.pin(map)?)?))
        });
    }
    let links = [
        "connect4",
        "connect6",
        "getpeername4",
        "getpeername6",
        "socket_operations",
        "inbound",
        "from_pod",
        "to_pod",
    ];
    for link in links {
        table.row(&format!("the link of {link}"), || {
            taken_away(&lab, "link", || {
                let pin = node.pin(link)?;
                let status = Command::new("bpftool").args(["link", "detach", "pinned"]).arg(&pin).status()?;
                ensure!(status.success(), "bpftool: {status}");
                Ok(())
            })
        });
        table.row(&format!("the pin of the link of {link}"), || {
            taken_away(&lab, "link", || Ok(std::fs::remove_file(node.pin(link)?)?))
        });
    }
    table.row("all pins", || taken_away(&lab, "pin", || Ok(std::fs::remove_dir_all(node.pins())?)));
    let run = node.socket().parent().context("a folder")?.to_owned();
    for file in ["enrol.sock", "enrolled.json"] {
        let path = run.join(file);
        table.row(file, || {
            taken_away(&lab, "file", || Ok(std::fs::remove_file(&path)?))?;
            ensure!(path.exists(), "it is not there");
            Ok(())
        });
    }
    table.row("repairs are counted", || {
        for kind in ["PODS", "link", "pin", "file"] {
            let count = node.metrics()?.sum("ambit_upkeep_repairs_total", &[("kind", kind)]);
            ensure!(count >= 1.0, "{kind}: {count}");
        }
        Ok(())
    });
    table.finish();
    lab.finish()
}

#[test]
fn plaintext_ends_with_the_lease_of_a_dead_daemon() -> Result<()> {
    let (lab, _servers) = lab()?;
    let (near, old) = (lab.pod("shop/near"), lab.pod("legacy/old"));
    let to = SocketAddr::new(near.ip(Family::V4), PORT);
    ask(&old, to).context("plaintext is permitted at first")?;
    lab.nodes[0].ztunnel.kill()?;
    lab.apply("strict", STRICT)?;
    let since = Instant::now();
    eventually("plaintext is refused", || match ask(&old, to) {
        Ok(_) => bail!("still accepted after {:?}", since.elapsed()),
        Err(_) => Ok(()),
    })?;
    ensure!(since.elapsed() < LEASE + IN_TIME, "only after {:?}", since.elapsed());
    for _ in 0..20 {
        ensure!(ask(&old, to).is_err(), "accepted once more");
    }
    lab.finish()
}

#[test]
fn connection_older_than_its_enrolment_ends_when_policy_forbids_it() -> Result<()> {
    let lab = Lab::builder()
        .nodes(1)
        .namespace(NamespaceSpec::new("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/db"))
        .pod(PodSpec::new("legacy/old"))
        .start()?;
    let (db, old) = (lab.pod("shop/db"), lab.pod("legacy/old"));
    let _server = Server::start(&db, "shop/db", PORT)?;
    let to = SocketAddr::new(db.ip(Family::V4), PORT);
    let mut before = connect(&old, to)?;
    greeted(&mut before)?;
    lab.label_namespace(NamespaceSpec::mesh("shop"))?;
    eventually("it is enrolled", || lab.settled())?;
    echo(&mut before).context("nothing forbids it")?;
    lab.apply("strict", STRICT)?;
    eventually("it is closed", || match echo(&mut before) {
        Ok(()) => bail!("still open"),
        Err(_) => Ok(()),
    })?;
    let closed =
        lab.nodes[0].metrics()?.sum("ambit_unlisted_connections_closed_total", &[("direction", "inbound")]);
    ensure!((0.5..1.5).contains(&closed), "{closed}");
    lab.finish()
}

#[test]
fn only_processes_of_the_node_pass_to_a_probe_port() -> Result<()> {
    let (lab, _servers) = lab()?;
    let near = lab.pod("shop/near");
    let _health = Server::start(&near, "health", PROBE)?;
    let to = SocketAddr::new(near.ip(Family::V4), PROBE);
    lab.apply("strict", STRICT)?;
    let old = lab.pod("legacy/old");
    eventually("strict is in force", || {
        ensure!(ask(&old, to).is_err());
        Ok(())
    })?;
    ask(&lab.nodes[0].place, to).context("a probe")?;
    // As kube-proxy does for a NodePort: what comes to a port of the node goes to the pod, from the node's
    // own address.
    let place = &lab.nodes[0].place;
    let pod = near.ip(Family::V4);
    let rules = format!(
        "table ip masqueraded {{\n\
         chain in {{ type nat hook prerouting priority -100; tcp dport 30080 dnat to {pod}:{PROBE}; }}\n\
         chain out {{\ntype nat hook postrouting priority 100;\n\
         ip daddr {pod} tcp dport {PROBE} masquerade;\n}}\n}}\n"
    );
    let script = lab.dir().join("masqueraded.nft");
    std::fs::write(&script, rules)?;
    place.output("nft", &["-f", &script.to_string_lossy()])?;
    let node = SocketAddr::new(gateway(&lab)?, 30080);
    match connect(&old, node) {
        Ok(mut stream) => bail!("a masqueraded client passes: {:?}", greeted(&mut stream)),
        Err(error) => {
            let refused = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            ensure!(refused == Some(ErrorKind::ConnectionRefused), "{error:#}");
        }
    }
    ask(&lab.nodes[0].place, to).context("still a probe")?;
    lab.finish()
}

/// The client's node, as its pods reach it.
fn gateway(lab: &Lab) -> Result<std::net::IpAddr> {
    let routes = lab.pod("legacy/old").output("ip", &["-4", "route", "show", "default"])?;
    let address = routes.split_whitespace().skip_while(|word| *word != "via").nth(1);
    Ok(address.with_context(|| format!("no default route: {routes}"))?.parse()?)
}

fn greeted(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    Ok(())
}

fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"ping");
    Ok(())
}
