//! Reports agree with what a client did: metrics and access log of both ends, and `/connections` while the
//! connection is open. On every path, for connections that were made and for those that were refused.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use ambit_harness::{Family, Lab, Node, Pod, PodSpec, eventually};
use ambit_suites::churn::reset_at_close;
use ambit_suites::every_path::{self, APP};
use ambit_suites::paths::{policy_in_force, warm};
use ambit_suites::{Rows, Server, ask, connect};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Not a round number, and not what the server sends.
const PAYLOAD: usize = 54_321;

const POLICIES: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: deny-all}
spec: {selector: {matchLabels: {app: guarded}}, action: DENY, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {namespace: shop, name: strict}
spec: {selector: {matchLabels: {app: strict}}, mtls: {mode: STRICT}}
";

fn lab() -> Result<(Lab, Vec<Server>)> {
    let builder = every_path::builder()
        .pod(PodSpec::new("shop/guarded").node(1))
        .pod(PodSpec::new("shop/strict").node(1))
        .object("policies", POLICIES);
    let (lab, servers) = every_path::start(builder, &["shop/guarded", "shop/strict"])?;
    policy_in_force(&lab, "shop/guarded", "shop/deny-all", true)?;
    policy_in_force(&lab, "shop/strict", "shop/converted_peer_authentication_strict", true)?;
    Ok((lab, servers))
}

/// A kind of connection.
#[derive(Clone, Copy)]
struct Case {
    path: &'static str,
    client: &'static str,
    server: &'static str,
    by_service: bool,
}

const CASES: [Case; 6] = [
    Case { path: "tunnel", client: "shop/far", server: "shop/db", by_service: false },
    Case { path: "tunnel", client: "shop/far", server: "shop/db", by_service: true },
    Case { path: "direct", client: "shop/near", server: "shop/db", by_service: false },
    Case { path: "direct", client: "shop/near", server: "shop/db", by_service: true },
    Case { path: "plaintext", client: "legacy/old", server: "shop/checked", by_service: false },
    Case { path: "native", client: "legacy/old", server: "shop/db", by_service: false },
];

/// How the client ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Orderly,
    Reset,
}

impl Case {
    fn name(self, family: Family, ending: Ending) -> String {
        let by = if self.by_service { " by its service" } else { "" };
        format!("{}: {} to {}{by} {family:?}, {ending:?}", self.path, self.client, self.server)
    }

    fn to(self, lab: &Lab, family: Family) -> SocketAddr {
        if self.by_service {
            every_path::at_service(lab, family)
        } else {
            every_path::at_pod(lab, self.server, family)
        }
    }

    /// Whether the client's daemon reports it too.
    fn outbound(self) -> bool {
        matches!(self.path, "tunnel" | "direct")
    }
}

/// The client's own account of a connection.
struct Account {
    client: SocketAddr,
    from_client: u64,
    from_server: u64,
}

/// Connects, reads the greeting, sends the payload and reads its echo.
fn talk(client: &Pod, to: SocketAddr) -> Result<(TcpStream, Account)> {
    let mut stream = connect(client, to)?;
    let mut greeting = Vec::new();
    while greeting.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("failed to read a greeting")?;
        greeting.push(byte[0]);
    }
    stream.write_all(&vec![b'x'; PAYLOAD])?;
    stream.read_exact(&mut vec![0; PAYLOAD]).context("failed to read the echo")?;
    let ip = client.ip(if to.is_ipv4() { Family::V4 } else { Family::V6 });
    let from_server = u64::try_from(greeting.len() + PAYLOAD)?;
    let client = SocketAddr::new(ip, stream.local_addr()?.port());
    Ok((stream, Account { client, from_client: u64::try_from(PAYLOAD)?, from_server }))
}

fn end(mut stream: TcpStream, ending: Ending) -> Result<()> {
    match ending {
        Ending::Orderly => {
            stream.shutdown(Shutdown::Write)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).context("failed to read to the end")?;
            ensure!(rest.is_empty(), "{} bytes more", rest.len());
        }
        Ending::Reset => {
            reset_at_close(&stream)?;
        }
    }
    Ok(())
}

/// The sums of a daemon's connection metrics between two workloads: opened, closed, failed, received, sent.
fn counts(node: &Node, reporter: &str, client: &Pod, server: &Pod) -> Result<[u64; 5]> {
    let metrics = node.metrics()?;
    let labels = [
        ("reporter", reporter),
        ("source_workload", client.spec.name.as_str()),
        ("destination_workload", server.spec.name.as_str()),
    ];
    let names =
        ["connections_opened", "connections_closed", "connections_failed", "received_bytes", "sent_bytes"];
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters are whole and positive"
    )]
    Ok(names.map(|name| metrics.sum(&format!("istio_tcp_{name}_total"), &labels) as u64))
}

/// Requires that a daemon's metrics grow to exactly this.
fn grew(node: &Node, reporter: &str, pods: [&Pod; 2], before: [u64; 5], by: [u64; 5]) -> Result<()> {
    let expected: Vec<u64> = before.iter().zip(by).map(|(before, by)| before + by).collect();
    eventually(&format!("{}: the {reporter}'s metrics", node.name), || {
        let now = counts(node, reporter, pods[0], pods[1])?;
        ensure!(
            now[..] == expected[..],
            "opened, closed, failed, received, sent are {now:?} instead of {expected:?}"
        );
        Ok(())
    })
}

/// The only record of a connection by a daemon, in a direction.
fn record(node: &Node, mark: u64, direction: &str, client: SocketAddr) -> Result<Value> {
    let client = client.to_string();
    eventually(&format!("{}: one {direction} record of {client}", node.name), || {
        let records = node.records_since(mark);
        let mut ours =
            records.iter().filter(|r| r["direction"] == direction && r["src.addr"] == client.as_str());
        let first = ours.next().context("none")?;
        ensure!(ours.next().is_none(), "more than one");
        Ok(first.clone())
    })
}

fn field(value: &Value, name: &str, expected: impl Into<Value>) -> Result<()> {
    let (found, expected) = (value.get(name).cloned().unwrap_or_default(), expected.into());
    ensure!(found == expected, "{name} is {found} instead of {expected} in {value}");
    Ok(())
}

/// One connection on one path: what all sides say while it is open, and when it has ended.
fn agree(lab: &Lab, case: Case, family: Family, ending: Ending) -> Result<()> {
    let (client, server) = (lab.pod(case.client), lab.pod(case.server));
    let (source, destination) = (lab.node_of(&client), lab.node_of(&server));
    let to = case.to(lab, family);
    if case.path == "direct" {
        warm(destination, &client, to)?;
    }
    let sides: Vec<(&Node, &str, &str)> =
        [(source, "source", "outbound"), (destination, "destination", "inbound")]
            .into_iter()
            .filter(|(_, reporter, _)| *reporter == "destination" || case.outbound())
            .collect();
    let mut before = Vec::new();
    for (node, reporter, _) in &sides {
        before.push((node.ztunnel.log_mark(), settled(node, reporter, &client, &server)?));
    }
    let (stream, account) = talk(&client, to)?;
    for (node, _, direction) in &sides {
        while_open(node, direction, case, &account, (&client, &server))?;
    }
    end(stream, ending)?;
    for ((node, reporter, direction), (mark, counted)) in sides.into_iter().zip(before) {
        let record = record(node, mark, direction, account.client)?;
        afterwards(&record, direction, case, &account, ending, SocketAddr::new(server.ip(family), APP))
            .with_context(|| format!("the {reporter}'s access log"))?;
        let by = [1, 1, 0, account.from_client, account.from_server];
        grew(node, reporter, [&client, &server], counted, by)?;
    }
    Ok(())
}

/// The counts when nothing of these two is open any more: what came before must not be counted in the row.
fn settled(node: &Node, reporter: &str, client: &Pod, server: &Pod) -> Result<[u64; 5]> {
    eventually("what was opened before is closed", || {
        let now = counts(node, reporter, client, server)?;
        ensure!(now[0] == now[1], "{} opened, {} closed", now[0], now[1]);
        Ok(now)
    })
}

fn while_open(
    node: &Node,
    direction: &str,
    case: Case,
    account: &Account,
    (client, server): (&Pod, &Pod),
) -> Result<()> {
    let address = account.client.to_string();
    eventually(&format!("{} lists the open connection", node.name), || {
        let open = node.connections()?;
        let mut ours =
            open.as_array().into_iter().flatten().filter(|view| {
                view["direction"] == direction && view["source"]["address"] == address.as_str()
            });
        let view = ours.next().context("it is not listed")?;
        ensure!(ours.next().is_none(), "it is listed twice");
        field(view, "path", case.path)?;
        field(view, "mutual_tls", case.path == "tunnel")?;
        field(view, "bytes_from_client", account.from_client)?;
        field(view, "bytes_from_server", account.from_server)?;
        field(&view["source"], "workload", client.spec.uid())?;
        field(&view["destination"], "workload", server.spec.uid())?;
        let proven = matches!(case.path, "tunnel" | "direct");
        field(&view["source"], "identity", proven.then(|| identity(client)))
    })
}

fn identity(pod: &Pod) -> String {
    format!("spiffe://cluster.local/ns/{}/sa/{}", pod.spec.namespace, pod.spec.account)
}

fn afterwards(
    record: &Value,
    direction: &str,
    case: Case,
    account: &Account,
    ending: Ending,
    app: SocketAddr,
) -> Result<()> {
    let (sent, received) = if direction == "outbound" {
        (account.from_client, account.from_server)
    } else {
        (account.from_server, account.from_client)
    };
    field(record, "path", case.path)?;
    field(record, "bytes_sent", sent)?;
    field(record, "bytes_recv", received)?;
    field(record, "src.workload", case.client.split('/').nth(1))?;
    field(record, "dst.workload", case.server.split('/').nth(1))?;
    let meant = if case.path == "tunnel" { "dst.hbone_addr" } else { "dst.addr" };
    field(record, meant, app.to_string())?;
    ensure!(
        record["src.identity"].is_null() == matches!(case.path, "plaintext" | "native"),
        "src.identity is {}",
        record["src.identity"]
    );
    match ending {
        Ending::Orderly => {
            field(record, "reason", "closed")?;
            field(record, "error", Value::Null)
        }
        Ending::Reset => {
            field(record, "reason", "reset")?;
            ensure!(!record["error"].is_null(), "no error in {record}");
            Ok(())
        }
    }
}

#[test]
fn reports_of_a_connection_agree() -> Result<()> {
    let (lab, _servers) = lab()?;
    let mut table = Rows::new();
    for case in CASES {
        for family in [Family::V4, Family::V6] {
            for ending in [Ending::Orderly, Ending::Reset] {
                table.row(&case.name(family, ending), || agree(&lab, case, family, ending));
            }
        }
    }
    table.finish();
    lab.finish()
}

/// A kind of refusal.
#[derive(Clone, Copy)]
struct Refusal {
    name: &'static str,
    client: &'static str,
    server: &'static str,
    port: u16,
    /// Of the destination's record.
    reason: &'static str,
    path: &'static str,
    policy: Option<&'static str>,
    /// In its metric.
    flag: &'static str,
    /// Whether the client's daemon reports it too.
    outbound: bool,
}

const REFUSALS: [Refusal; 6] = [
    Refusal {
        name: "by policy, from another node",
        client: "shop/far",
        server: "shop/guarded",
        port: APP,
        reason: "policy_denied",
        path: "tunnel",
        policy: Some("shop/deny-all"),
        flag: "DENY",
        outbound: true,
    },
    Refusal {
        name: "by policy, on one node",
        client: "shop/near",
        server: "shop/guarded",
        port: APP,
        reason: "policy_denied",
        path: "tunnel",
        policy: Some("shop/deny-all"),
        flag: "DENY",
        outbound: true,
    },
    Refusal {
        name: "by policy, in plaintext",
        client: "legacy/old",
        server: "shop/guarded",
        port: APP,
        reason: "policy_denied",
        // In the kernel, which has the policy's verdict for every source without a certificate.
        path: "native",
        policy: Some("shop/deny-all"),
        flag: "DENY",
        outbound: false,
    },
    Refusal {
        name: "plaintext where only tunnels may come",
        client: "legacy/old",
        server: "shop/strict",
        port: APP,
        reason: "plaintext_refused",
        path: "native",
        policy: None,
        flag: "DENY",
        outbound: false,
    },
    Refusal {
        name: "no listener, by tunnel",
        client: "shop/far",
        server: "shop/db",
        port: 9,
        reason: "connect_failed",
        path: "tunnel",
        policy: None,
        flag: "CONNECT",
        outbound: true,
    },
    Refusal {
        name: "no listener, checked plaintext",
        client: "legacy/old",
        server: "shop/checked",
        port: 9,
        reason: "connect_failed",
        path: "plaintext",
        policy: None,
        flag: "CONNECT",
        outbound: false,
    },
];

/// Tries some times, and requires as many records and counts on every side.
fn refused(lab: &Lab, row: Refusal, family: Family) -> Result<()> {
    const TIMES: u64 = 3;
    let (client, server) = (lab.pod(row.client), lab.pod(row.server));
    let (source, destination) = (lab.node_of(&client), lab.node_of(&server));
    let sides: Vec<(&Node, &str, &str)> =
        [(source, "source", "outbound"), (destination, "destination", "inbound")]
            .into_iter()
            .filter(|(_, reporter, _)| *reporter == "destination" || row.outbound)
            .collect();
    let mut before = Vec::new();
    for (node, reporter, _) in &sides {
        before.push((node.ztunnel.log_mark(), settled(node, reporter, &client, &server)?));
    }
    let to = SocketAddr::new(server.ip(family), row.port);
    for _ in 0..TIMES {
        match ask(&client, to) {
            Ok(answer) => bail!("{} answers", answer.server),
            Err(error) => {
                let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                let as_refused =
                    [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused, ErrorKind::BrokenPipe];
                ensure!(kind.is_some_and(|kind| as_refused.contains(&kind)), "it ends with {error:#}");
            }
        }
    }
    let own = format!("{}:", SocketAddr::new(client.ip(family), 0).to_string().trim_end_matches(":0"));
    for ((node, reporter, direction), (mark, counted)) in sides.into_iter().zip(before) {
        grew(node, reporter, [&client, &server], counted, [0, 0, TIMES, 0, 0])?;
        eventually(&format!("the {reporter}'s log has a record for each"), || {
            let records = node.records_since(mark);
            let ours = records.iter().filter(|r| {
                r["direction"] == direction && r["src.addr"].as_str().is_some_and(|a| a.starts_with(&own))
            });
            let ours: Vec<_> = ours.collect();
            ensure!(u64::try_from(ours.len())? == TIMES, "{} records", ours.len());
            for record in ours {
                ensure!(!record["error"].is_null(), "no error in {record}");
                if reporter == "destination" {
                    field(record, "reason", row.reason)?;
                    field(record, "path", row.path)?;
                    field(record, "policy", row.policy)?;
                }
            }
            Ok(())
        })?;
        if reporter == "destination" {
            let labels = [
                ("reporter", reporter),
                ("source_workload", client.spec.name.as_str()),
                ("destination_workload", server.spec.name.as_str()),
                ("response_flags", row.flag),
            ];
            let flagged = node.metrics()?.sum("istio_tcp_connections_failed_total", &labels);
            ensure!(flagged > 2.5, "only {flagged} with {}", row.flag);
        }
    }
    Ok(())
}

#[test]
fn reports_of_a_refusal_agree() -> Result<()> {
    let (lab, servers) = lab()?;
    let before: Vec<usize> = servers.iter().map(Server::accepted).collect();
    let mut table = Rows::new();
    for row in REFUSALS {
        for family in [Family::V4, Family::V6] {
            table.row(&format!("{} {family:?}", row.name), || refused(&lab, row, family));
        }
    }
    let after: Vec<usize> = servers.iter().map(Server::accepted).collect();
    table.row("the applications noticed nothing", || {
        ensure!(before == after, "{before:?}, {after:?}");
        Ok(())
    });
    table.finish();
    lab.finish()
}
