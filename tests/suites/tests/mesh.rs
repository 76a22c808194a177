//! The mesh at work: services over both nodes, balancing, and telemetry that agrees with what clients saw.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use ambit_harness::{Family, Place, Pod, PodSpec, ServiceSpec, eventually};
use ambit_suites::shop::{CART, DB, FAMILIES, mapped, shop};
use ambit_suites::{Rows, Server, TIMEOUT, ask, connect, exchange};
use anyhow::{Result, bail, ensure};
use serde_json::Value;

#[test]
fn clients_reach_services_and_pods() -> Result<()> {
    let (lab, _servers) = shop()?;
    let mut table = Rows::new();
    for family in FAMILIES {
        let ip = |pod: &str| lab.pod(pod).ip(family);
        let service = |name: &str| lab.service(name, family);
        let carts = &["shop/cart-1", "shop/cart-2"][..];
        let rows: [(&str, &str, IpAddr, u16, &[&str]); 9] = [
            ("service", "shop/web", service("shop/cart"), 80, carts),
            ("service with a named port", "shop/web", service("shop/cart"), 81, carts),
            ("service with one endpoint", "shop/web", service("shop/db"), DB, &["shop/db"]),
            ("service from another namespace", "bank/teller", service("shop/db"), DB, &["shop/db"]),
            ("pod on the same node", "shop/web", ip("shop/cart-1"), CART, &["shop/cart-1"]),
            ("pod on the other node", "shop/web", ip("shop/cart-2"), CART, &["shop/cart-2"]),
            ("its own address", "shop/web", ip("shop/web"), CART, &["shop/web"]),
            ("service from its own endpoint", "shop/db", service("shop/db"), DB, &["shop/db"]),
            ("pod outside the mesh", "shop/web", ip("legacy/far"), CART, &["legacy/far"]),
        ];
        for (name, client, address, port, servers) in rows {
            for address in [address, mapped(address)] {
                let client = lab.pod(client);
                table.row(&format!("{name}: {} to {address}", client.spec.key()), || {
                    let to = SocketAddr::new(address, port);
                    let answer = ask(&client, to)?;
                    ensure!(servers.contains(&answer.server.as_str()), "answered by {}", answer.server);
                    let own = client.ip(family);
                    ensure!(answer.saw == own, "the server saw {} instead of {own}", answer.saw);
                    ensure!(
                        answer.saw_port == answer.port,
                        "the server saw port {} of {}",
                        answer.saw_port,
                        answer.port
                    );
                    exchange(&client, to, &vec![b'x'; 3 << 20]).map(drop)
                });
            }
        }
    }
    table.row("an unmodified client: curl", || {
        let web = lab.pod("shop/web");
        let _shop = lab.pod("shop/db").serve("shop", &["db", "--listen", "[::]:8088"])?;
        let url = format!("http://{}:8088/", lab.pod("shop/db").v4);
        let said = web.output("curl", &["--silent", "--show-error", "--max-time", "20", &url])?;
        ensure!(said.contains("db") && said.contains(&web.v4.to_string()), "curl got {said:?}");
        Ok(())
    });
    table.row("a port without a listener", || {
        let to = SocketAddr::new(lab.pod("shop/db").v4.into(), 9);
        // The reset may be so quick that it meets `connect()` itself.
        let end = read_from(&lab.pod("shop/web"), to);
        ensure!(end.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "it ended with {end:?}");
        Ok(())
    });
    table.finish();
    lab.finish()
}

/// Connects and reads.
fn read_from(web: &Pod, to: SocketAddr) -> std::io::Result<usize> {
    let mut stream =
        web.run(|| TcpStream::connect_timeout(&to, TIMEOUT)).map_err(std::io::Error::other)??;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.read(&mut [0])
}

#[test]
fn service_with_endpoints_outside_the_mesh_is_reached() -> Result<()> {
    let (lab, _servers) = shop()?;
    let machine = format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{namespace: shop, name: \
         machine}}\nspec: {{address: {}, labels: {{app: mixed}}, serviceAccount: machine}}\n",
        lab.outside.v4
    );
    lab.apply("machine", &machine)?;
    lab.add_service(ServiceSpec::new("shop/mixed").port(90, CART))?;
    let mut servers = vec![Server::start(&lab.outside, "machine", CART)?];
    for pod in [
        PodSpec::new("shop/inside").label("app", "mixed").node(1),
        PodSpec::new("shop/opted-out").label("app", "mixed").legacy().node(1),
    ] {
        let pod = lab.add_pod(pod)?;
        servers.push(Server::start(&pod, &pod.spec.name, CART)?);
    }
    let web = lab.pod("shop/web");
    let to = SocketAddr::new(lab.service("shop/mixed", Family::V4), 90);
    eventually("all three answer", || {
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            let answer = ask(&web, to)?;
            ensure!(answer.saw == web.v4, "{} saw {}", answer.server, answer.saw);
            seen.insert(answer.server);
        }
        ensure!(seen.len() == 3, "{seen:?}");
        Ok(())
    })?;
    lab.finish()
}

/// How often each server answered.
fn tally(client: &Place, to: SocketAddr, times: usize) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        *counts.entry(ask(client, to)?.server).or_default() += 1;
    }
    Ok(counts)
}

#[test]
fn service_is_balanced_over_ready_endpoints() -> Result<()> {
    let (lab, _servers) = shop()?;
    let web = lab.pod("shop/web");
    let to = SocketAddr::new(lab.service("shop/cart", Family::V4), 80);
    let counts = tally(&web, to, 200)?;
    // Each of the two is chosen with probability 1/2: less than 50 of 200 happens once in 10^12.
    assert!(counts.len() == 2 && counts.values().all(|count| *count >= 50), "{counts:?}");

    let cart_1 = lab.pod("shop/cart-1").spec;
    let only = |name: &str| {
        eventually(&format!("only {name} answers"), || {
            let counts = tally(&web, to, 20)?;
            ensure!(counts.len() == 1 && counts.contains_key(name), "{counts:?}");
            Ok(())
        })
    };
    lab.update_pod(cart_1.clone().unready())?;
    only("shop/cart-2")?;
    lab.update_pod(lab.pod("shop/cart-2").spec.unready())?;
    eventually("without a ready endpoint there is an error", || match ask(&web, to) {
        Ok(answer) => bail!("{} answers", answer.server),
        Err(_) => Ok(()),
    })?;
    lab.update_pod(PodSpec { ready: true, ..cart_1 })?;
    only("shop/cart-1")?;
    lab.add_pod(PodSpec::new("shop/cart-3").label("app", "cart").account("cart").port("http", CART).node(1))?;
    let _third = Server::start(&lab.pod("shop/cart-3"), "shop/cart-3", CART)?;
    eventually("the new pod answers too", || {
        let counts = tally(&web, to, 20)?;
        ensure!(counts.len() == 2 && counts.contains_key("shop/cart-3"), "{counts:?}");
        Ok(())
    })?;
    lab.finish()
}

const DENY_WEB: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
    metadata: {namespace: shop, name: deny-principal}\n\
    spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}\n";

/// The access log's records of connections, by direction, to a port.
fn accesses(records: &[Value], direction: &str, port: u16) -> Vec<Value> {
    let to = |record: &&Value| {
        record["direction"] == direction
            && record["dst.hbone_addr"].as_str().is_some_and(|address| address.ends_with(&format!(":{port}")))
    };
    records.iter().filter(to).cloned().collect()
}

#[test]
fn metrics_and_access_logs_agree_with_what_clients_saw() -> Result<()> {
    const TIMES: usize = 25;
    const BYTES: usize = 10_000;
    let (lab, _servers) = shop()?;
    let (web, db) = (lab.pod("shop/web"), lab.pod("shop/db"));
    let marks: Vec<u64> = lab.nodes.iter().map(|node| node.ztunnel.log_mark()).collect();
    let mut greetings = 0;
    for _ in 0..TIMES {
        let answer = exchange(&web, SocketAddr::new(lab.service("shop/db", Family::V4), DB), &[b'z'; BYTES])?;
        greetings += format!("{} {} {}\n", answer.server, answer.saw, answer.saw_port).len();
    }
    let mut table = Rows::new();
    let labels = [
        ("source_workload", "web"),
        ("source_workload_namespace", "shop"),
        ("destination_workload", "db"),
        ("destination_workload_namespace", "shop"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/web"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/db"),
        ("destination_service", "db.shop.svc.cluster.local"),
        ("destination_service_name", "db"),
        ("destination_service_namespace", "shop"),
        ("connection_security_policy", "mutual_tls"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
    ];
    for (node, reporter) in [(0, "source"), (1, "destination")] {
        let mut labels: Vec<_> = labels.to_vec();
        labels.push(("reporter", reporter));
        let counts = [
            ("istio_tcp_connections_opened_total", TIMES),
            ("istio_tcp_connections_closed_total", TIMES),
            ("istio_tcp_received_bytes_total", TIMES * BYTES),
            ("istio_tcp_sent_bytes_total", TIMES * BYTES + greetings),
        ];
        for (name, count) in counts {
            table.row(&format!("{reporter}: {name}"), || {
                eventually("the metric counts them", || {
                    let sum = lab.nodes[node].metrics()?.sum(name, &labels);
                    let count = f64::from(u32::try_from(count)?);
                    ensure!((sum - count).abs() < 0.5, "{sum} instead of {count}");
                    Ok(())
                })
            });
        }
        table.row(&format!("{reporter}: access log"), || {
            eventually("the log has a record for each", || {
                let records = lab.nodes[node].records_since(marks[node]);
                let direction = if reporter == "source" { "outbound" } else { "inbound" };
                let all = accesses(&records, direction, DB);
                let fine: Vec<_> = all.iter().filter(|record| record["error"].is_null()).collect();
                ensure!(fine.len() == TIMES, "{} records instead of {TIMES}", fine.len());
                for record in fine {
                    check_record(record, &web, &db)?;
                }
                Ok(())
            })
        });
    }
    table.row("refused: counted and logged with its policy", || {
        lab.apply("policy", DENY_WEB)?;
        eventually("the client is refused", || {
            ensure!(ask(&web, SocketAddr::new(db.v4.into(), DB)).is_err(), "the client gets an answer");
            Ok(())
        })?;
        eventually("the destination reports the refusal", || {
            // The one above may have been let in before the policy came and cut right after: closed, not
            // failed.
            ensure!(ask(&web, SocketAddr::new(db.v4.into(), DB)).is_err(), "the client gets an answer");
            let metrics = lab.nodes[1].metrics()?;
            let failed = metrics.sum(
                "istio_tcp_connections_failed_total",
                &[("source_workload", "web"), ("reporter", "destination")],
            );
            ensure!(failed >= 1.0, "no failed connection is counted");
            let records = lab.nodes[1].records_since(marks[1]);
            let named =
                |record: &Value| record["policy"] == "shop/deny-principal" && !record["error"].is_null();
            ensure!(accesses(&records, "inbound", DB).iter().any(named), "no record names the policy");
            Ok(())
        })
    });
    table.finish();
    lab.finish()
}

fn check_record(record: &Value, web: &Pod, db: &Pod) -> Result<()> {
    let wanted = [
        ("src.workload", "web".to_owned()),
        ("src.namespace", "shop".to_owned()),
        ("src.identity", "spiffe://cluster.local/ns/shop/sa/web".to_owned()),
        ("dst.workload", "db".to_owned()),
        ("dst.namespace", "shop".to_owned()),
        ("dst.identity", "spiffe://cluster.local/ns/shop/sa/db".to_owned()),
        ("dst.service", "db.shop.svc.cluster.local".to_owned()),
        ("dst.hbone_addr", format!("{}:{DB}", db.v4)),
    ];
    for (field, value) in wanted {
        ensure!(
            record[field] == value.as_str(),
            "{field} is {} instead of {value} in {record}",
            record[field]
        );
    }
    let source = record["src.addr"].as_str().unwrap_or_default();
    ensure!(source.starts_with(&format!("{}:", web.v4)), "src.addr is {source}");
    let bytes = [record["bytes_sent"].as_u64(), record["bytes_recv"].as_u64()];
    ensure!(bytes.iter().all(|count| count.is_some_and(|count| count >= 10_000)), "bytes are {bytes:?}");
    Ok(())
}

#[test]
fn admin_interface_shows_mesh_state() -> Result<()> {
    let (lab, _servers) = shop()?;
    let web = lab.pod("shop/web");
    let mut table = Rows::new();
    table.row("/config_dump", || {
        for node in &lab.nodes {
            let dump = node.config_dump()?.to_string();
            for word in ["Kubernetes//Pod/shop/db", "cart.shop.svc.cluster.local"] {
                ensure!(dump.contains(word), "{} does not mention {word}", node.name);
            }
            ensure!(!dump.contains("PRIVATE KEY"), "a secret is shown");
        }
        Ok(())
    });
    table.row("/connections", || {
        let mut stream = connect(&web, SocketAddr::new(lab.pod("shop/db").v4.into(), DB))?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        for node in &lab.nodes {
            let open = node.connections()?.to_string();
            ensure!(
                open.contains(&lab.pod("shop/db").v4.to_string()),
                "{} does not show it: {open}",
                node.name
            );
        }
        Ok(())
    });
    table.row("/logging", || {
        let netns = &lab.nodes[0].place.netns;
        let admin = SocketAddr::from(([127, 0, 0, 1], 15000));
        ambit_harness::http::request(netns, "POST", admin, "/logging?level=debug")?.ok()?;
        ensure!(lab.nodes[0].get(15000, "/logging")?.contains("debug"), "the level did not change");
        ambit_harness::http::request(netns, "POST", admin, "/logging?level=info")?.ok().map(drop)
    });
    table.row("admin is not for others", || {
        let node = &lab.nodes[0].place;
        let mut curl: Command = web.command("curl");
        let output =
            curl.args(["--max-time", "5", &format!("http://{}:15000/config_dump", node.v4)]).output()?;
        ensure!(!output.status.success(), "a pod reads the daemon's configuration");
        Ok(())
    });
    table.row("the controller's metrics", || {
        ensure!(!lab.controller_metrics()?.0.is_empty(), "no metrics");
        Ok(())
    });
    table.finish();
    lab.finish()
}
