//! The direct path from end to end on one node: the first connection of a pair is decided by the daemon, the
//! next are the kernel's own; they are reported, listed and closed like others, and a daemon's absence ends
//! them in time.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, ServiceSpec, eventually, within};
use ambit_suites::{Rows, Server, ask, connect, exchange};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const DB: u16 = 5432;
/// Shorter than usual, so that a test may wait for its end.
const LEASE: Duration = Duration::from_secs(4);

const DENY_WEB: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  \
                        namespace: shop\n  name: deny-web\nspec:\n  selector: {matchLabels: {app: db}}\n  \
                        action: DENY\n  rules: [{from: [{source: {principals: \
                        [cluster.local/ns/shop/sa/web]}}]}]\n";

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  namespace: \
                      shop\n  name: strict\nspec: {mtls: {mode: STRICT}}\n";

/// Two pods of one node, and a neighbour outside the mesh.
fn lab() -> Result<(Lab, Server)> {
    let lab = Lab::builder()
        .nodes(1)
        .daemon_config(&format!("direct: {{lease_seconds: {}}}", LEASE.as_secs()))
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/db"))
        .pod(PodSpec::new("legacy/old"))
        .service(ServiceSpec::new("shop/db").port(DB, DB))
        .start()?;
    let server = Server::start(&lab.pod("shop/db"), "shop/db", DB)?;
    Ok((lab, server))
}

/// The client's reports since a mark, by path.
fn reports(lab: &Lab, mark: u64, path: &str) -> Vec<Value> {
    let records = lab.nodes[0].records_since(mark);
    records.into_iter().filter(|record| record["path"] == path && record["direction"].is_string()).collect()
}

fn service(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.service("shop/db", Family::V4), DB)
}

/// Talks until a connection has gone direct.
fn warm(lab: &Lab, to: SocketAddr) -> Result<()> {
    let web = lab.pod("shop/web");
    eventually("a connection goes direct", || {
        let mark = lab.nodes[0].ztunnel.log_mark();
        ask(&web, to)?;
        eventually("it is reported", || {
            let paths = ["direct", "tunnel"].map(|path| reports(lab, mark, path).len());
            ensure!(paths.iter().sum::<usize>() >= 2, "{paths:?}");
            Ok(())
        })?;
        ensure!(reports(lab, mark, "direct").len() == 2, "it took the tunnel");
        Ok(())
    })
}

/// An open direct connection, greeted.
fn open_direct(lab: &Lab, to: SocketAddr) -> Result<TcpStream> {
    warm(lab, to)?;
    let mut stream = connect(&lab.pod("shop/web"), to)?;
    let mut byte = [0];
    while byte != [b'\n'] {
        stream.read_exact(&mut byte)?;
    }
    echo(&mut stream)?;
    let open = listed(lab)?;
    ensure!(open.len() == 2, "it is not direct: {open:?}");
    Ok(stream)
}

fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"still there?")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"still there?");
    Ok(())
}

/// The entries of direct connections in `/connections`.
fn listed(lab: &Lab) -> Result<Vec<Value>> {
    let all = lab.nodes[0].connections()?;
    let all = all.as_array().context("a list")?;
    Ok(all.iter().filter(|open| open["path"] == "direct").cloned().collect())
}

#[test]
fn second_connection_is_direct() -> Result<()> {
    let (lab, _server) = lab()?;
    let (web, db) = (lab.pod("shop/web"), lab.pod("shop/db"));
    let mut table = Rows::new();
    for (name, to) in
        [("by its service", service(&lab)), ("by its address", SocketAddr::new(db.v4.into(), DB))]
    {
        table.row(name, || {
            warm(&lab, to)?;
            let mark = lab.nodes[0].ztunnel.log_mark();
            let answer = exchange(&web, to, &[7; 10_000])?;
            ensure!(answer.saw == web.v4 && answer.saw_port == answer.port, "the server saw {answer:?}");
            eventually("both ends are reported", || {
                let reports = reports(&lab, mark, "direct");
                ensure!(reports.len() == 2, "{reports:?}");
                for report in reports {
                    let sent = if report["direction"] == "outbound" { "bytes_sent" } else { "bytes_recv" };
                    let wanted = [
                        ("src.workload", "web"),
                        ("src.identity", "spiffe://cluster.local/ns/shop/sa/web"),
                        ("dst.workload", "db"),
                        ("dst.identity", "spiffe://cluster.local/ns/shop/sa/db"),
                        ("reason", "closed"),
                    ];
                    for (field, value) in wanted {
                        ensure!(report[field] == value, "{field} in {report}");
                    }
                    ensure!(report[sent] == 10_000, "{sent} in {report}");
                    let found = report["dst.service"].as_str();
                    let expected = (to == service(&lab)).then_some("db.shop.svc.cluster.local");
                    ensure!(found == expected, "dst.service in {report}");
                }
                Ok(())
            })
        });
    }
    table.row("open ones are listed with their bytes", || {
        let mut stream = open_direct(&lab, service(&lab))?;
        stream.write_all(&[1; 5000])?;
        stream.read_exact(&mut [0; 5000])?;
        for open in listed(&lab)? {
            ensure!(open["bytes_from_client"] == 5012, "{open}");
            ensure!(open["service"] == "shop/db.shop.svc.cluster.local", "{open}");
        }
        drop(stream);
        eventually("it leaves the list", || {
            ensure!(listed(&lab)?.is_empty());
            Ok(())
        })
    });
    table.row("open ones are in the metrics, and every byte counts once", || {
        let sum = |name: &str, labels: &[(&str, &str)]| -> Result<f64> {
            Ok(lab.nodes[0].metrics()?.sum(name, labels))
        };
        let open = || {
            let of =
                |direction| sum("ambit_connections_open", &[("path", "direct"), ("direction", direction)]);
            Ok::<_, anyhow::Error>((of("outbound")?, of("inbound")?))
        };
        let received = || {
            let of = |reporter| {
                let labels = [("reporter", reporter), ("destination_workload", "db")];
                sum("istio_tcp_received_bytes_total", &labels)
            };
            Ok::<_, anyhow::Error>((of("source")?, of("destination")?))
        };
        let mut stream = open_direct(&lab, service(&lab))?;
        ensure!(open()? == (1.0, 1.0), "{:?} are open: {:?}", open()?, listed(&lab)?);
        let before = received()?;
        let carried = |count: f64| -> Result<()> {
            let now = received()?;
            ensure!(now == (before.0 + count, before.1 + count), "{before:?}, then {now:?} after {count}");
            Ok(())
        };
        stream.write_all(&[1; 5000])?;
        stream.read_exact(&mut [0; 5000])?;
        carried(5000.0)?;
        carried(5000.0).context("asked again")?;
        drop(stream);
        eventually("none is open", || {
            ensure!(open()? == (0.0, 0.0));
            Ok(())
        })?;
        carried(5000.0).context("closed")
    });
    table.finish();
    lab.finish()
}

#[test]
fn new_policy_closes_open_direct_connections_and_refuses_new_ones() -> Result<()> {
    let (lab, _server) = lab()?;
    let web = lab.pod("shop/web");
    let mut stream = open_direct(&lab, service(&lab))?;
    let mark = lab.nodes[0].ztunnel.log_mark();
    lab.apply("deny", DENY_WEB)?;
    let applied = Instant::now();
    let error = stream.read(&mut [0]).expect_err("the connection is cut");
    println!("cut {:?} after the file was written", applied.elapsed());
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    eventually("the reason is reported", || {
        let cut = reports(&lab, mark, "direct");
        ensure!(cut.len() == 2, "{cut:?}");
        for report in &cut {
            ensure!(report["reason"] == "policy_denied" && report["policy"] == "shop/deny-web", "{report}");
        }
        Ok(())
    })?;
    let recent = lab.nodes[0].get(15000, "/connections/recent")?;
    ensure!(recent.contains("policy_denied"), "{recent}");
    ensure!(ask(&web, service(&lab)).is_err(), "a new one gets an answer");
    lab.remove("deny")?;
    warm(&lab, service(&lab))?;
    lab.finish()
}

#[test]
fn open_direct_connections_outlive_the_daemon_new_ones_end_with_the_lease() -> Result<()> {
    let (lab, _server) = lab()?;
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    let mut stream = open_direct(&lab, service(&lab))?;
    let client = SocketAddr::new(web.v4.into(), stream.local_addr()?.port()).to_string();
    node.ztunnel.kill()?;
    let killed = Instant::now();
    eventually("new connections fail", || {
        ensure!(ask(&web, service(&lab)).is_err(), "a new connection gets an answer");
        Ok(())
    })?;
    let closed = killed.elapsed();
    println!("new connections fail {closed:?} after the daemon's death, the lease being {LEASE:?}");
    echo(&mut stream).context("the open one lives on")?;

    let mark = node.ztunnel.log_mark();
    node.start()?;
    eventually("it is listed by the next daemon", || {
        let ours = listed(&lab)?.iter().filter(|open| open["source"]["address"] == client.as_str()).count();
        ensure!(ours == 2, "{:?}", listed(&lab)?);
        Ok(())
    })?;
    echo(&mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    eventually("its end is reported once for each end", || {
        // The next daemon also reports those that came and went while there was none.
        let mut reports = reports(&lab, mark, "direct");
        reports.retain(|report| report["src.addr"] == client.as_str());
        ensure!(reports.len() == 2, "{reports:?}");
        let bytes = |record: &Value| record["bytes_sent"].as_u64().zip(record["bytes_recv"].as_u64());
        ensure!(
            reports.iter().all(|report| bytes(report).is_some_and(|(a, b)| a.min(b) == 36)),
            "{reports:?}"
        );
        Ok(())
    })?;
    warm(&lab, service(&lab))?;
    lab.finish()
}

#[test]
fn direct_switch_applies_to_new_and_open_connections() -> Result<()> {
    let (lab, _server) = lab()?;
    let mut stream = open_direct(&lab, service(&lab))?;
    let switch = |value| lab.update_pod(PodSpec::new("shop/db").label("ambit.dev/direct", value));
    let mark = lab.nodes[0].ztunnel.log_mark();
    switch("disabled")?;
    let error = stream.read(&mut [0]).expect_err("the open one is cut");
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
    eventually("it is reported", || {
        let cut = reports(&lab, mark, "direct");
        ensure!(cut.len() == 2 && cut.iter().all(|report| report["reason"] == "direct_disabled"), "{cut:?}");
        Ok(())
    })?;
    let mark = lab.nodes[0].ztunnel.log_mark();
    for _ in 0..5 {
        ask(&lab.pod("shop/web"), service(&lab))?;
    }
    eventually("all are reported", || {
        ensure!(reports(&lab, mark, "tunnel").len() >= 10);
        Ok(())
    })?;
    let direct = reports(&lab, mark, "direct");
    ensure!(direct.is_empty(), "one went direct: {direct:?}");
    switch("enabled")?;
    warm(&lab, service(&lab))?;
    lab.finish()
}

#[test]
fn native_connection_is_reported_and_closed_by_policy() -> Result<()> {
    let (lab, _server) = lab()?;
    let (node, old) = (&lab.nodes[0], lab.pod("legacy/old"));
    let db = SocketAddr::new(lab.pod("shop/db").v4.into(), DB);
    let native = |mark| {
        let mut found = reports(&lab, mark, "native");
        found.retain(|report| report["src.workload"] == "old" && report["direction"] == "inbound");
        found
    };
    // Until its lease on open mode is renewed for the first time, the daemon carries plaintext.
    eventually("plaintext passes in the kernel", || {
        let mark = node.ztunnel.log_mark();
        exchange(&old, db, &[7; 10])?;
        within(Duration::from_secs(2), "it is reported", || {
            ensure!(!native(mark).is_empty(), "not as native");
            Ok(())
        })
    })?;
    let mut table = Rows::new();
    table.row("what ended is reported", || {
        let mark = node.ztunnel.log_mark();
        exchange(&old, db, &[7; 3000])?;
        eventually("it is reported once", || {
            let found = native(mark);
            ensure!(found.len() == 1, "{found:?}");
            ensure!(found[0]["bytes_recv"] == 3000 && found[0]["reason"] == "closed", "{found:?}");
            ensure!(found[0]["src.identity"].is_null() && found[0]["dst.workload"] == "db", "{found:?}");
            Ok(())
        })
    });
    table.row("what is open is listed, and cut by a policy", || {
        let mut stream = connect(&old, db)?;
        let mut byte = [0];
        while byte != [b'\n'] {
            stream.read_exact(&mut byte)?;
        }
        echo(&mut stream)?;
        let open = node.connections()?;
        let listed = |open: &Value| open["path"] == "native" && open["bytes_from_client"] == 12;
        ensure!(open.as_array().context("a list")?.iter().any(listed), "{open}");
        let mark = node.ztunnel.log_mark();
        lab.apply("strict", STRICT)?;
        let error = stream.read(&mut [0]).expect_err("the connection is cut");
        ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}");
        eventually("the reason is reported", || {
            let found = native(mark);
            ensure!(found.iter().any(|report| report["reason"] == "policy_denied"), "{found:?}");
            Ok(())
        })
    });
    table.row("what is refused is reported", || {
        let mark = node.ztunnel.log_mark();
        ensure!(ask(&old, db).is_err(), "it gets an answer");
        eventually("the refusal is reported", || {
            let found = native(mark);
            ensure!(found.iter().any(|report| report["reason"] == "plaintext_refused"), "{found:?}");
            Ok(())
        })?;
        let failed = [("source_workload", "old"), ("reporter", "destination"), ("response_flags", "DENY")];
        ensure!(
            node.metrics()?.sum("istio_tcp_connections_failed_total", &failed) >= 1.0,
            "it is not counted"
        );
        Ok(())
    });
    table.finish();
    lab.finish()
}
