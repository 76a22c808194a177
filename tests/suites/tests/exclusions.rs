//! Ports that a pod keeps out of capture by its annotations: what passes, what does not, and that it follows
//! the annotations of pods that run.

use std::io::ErrorKind;
use std::net::SocketAddr;

use ambit_core::enrolment::exclusion::{INBOUND_PORTS, OUTBOUND_PORTS};
use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, eventually};
use ambit_suites::paths::{ask_and_trace, client_end, inbound, policy_in_force};
use ambit_suites::shop::{FAMILIES, mapped};
use ambit_suites::{MARKER, Rows, Server, ask, exchange, marked_payload};
use anyhow::{Result, bail, ensure};

const APP: u16 = 8080;
const METRICS: u16 = 9090;
const HBONE: u16 = 15008;

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: \
                      shop, name: strict}\nspec: {selector: {matchLabels: {app: db}}, mtls: {mode: \
                      STRICT}}\n";
const STRICT_NAME: &str = "shop/converted_peer_authentication_strict";
const ONLY_WEB: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: \
                        shop, name: only-web}\nspec: {selector: {matchLabels: {app: db}}, action: ALLOW, \
                        rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}\n";

/// The database is elsewhere than `web` and `old`; `twin` and `near` are on its node. All servers listen on
/// both ports.
fn lab() -> Result<(Lab, Vec<Server>)> {
    let lab = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/twin").node(1).account("web"))
        .pod(PodSpec::new("shop/other"))
        .pod(PodSpec::new("shop/db").node(1))
        .pod(PodSpec::new("legacy/old"))
        .pod(PodSpec::new("legacy/near").node(1))
        .start()?;
    let mut servers = Vec::new();
    for port in [APP, METRICS] {
        servers.push(Server::start(&lab.pod("shop/db"), "shop/db", port)?);
    }
    Ok((lab, servers))
}

/// Puts an annotation on a pod that runs, or takes it off.
fn annotate(lab: &Lab, pod: &str, annotation: &str, value: Option<&str>) -> Result<()> {
    let mut spec = lab.pod(pod).spec;
    match value {
        Some(value) => spec.annotations.insert(annotation.to_owned(), value.to_owned()),
        None => spec.annotations.remove(annotation),
    };
    lab.update_pod(spec)
}

/// Waits until a pod's daemon has these ports as excluded.
fn excluded(lab: &Lab, pod: &str, ports: [&[u16]; 2]) -> Result<()> {
    let pod = lab.pod(pod);
    ambit_suites::paths::enforces(lab.node_of(&pod), "exclusions", |dump| {
        let workloads = dump["workloads"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found = workloads.iter().find(|workload| workload["uid"] == pod.spec.uid().as_str());
        for (name, ports) in ["excluded_inbound_ports", "excluded_outbound_ports"].iter().zip(ports) {
            let found = found.map(|workload| workload[name].clone());
            ensure!(found == Some(serde_json::json!(ports)), "{name}: {found:?}");
        }
        Ok(())
    })
}

fn refused(lab: &Lab, client: &str, to: SocketAddr) -> Result<()> {
    match ask(&lab.pod(client), to) {
        Ok(answer) => bail!("{client} gets an answer from {}", answer.server),
        Err(error) => {
            let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
            let late = causes.any(|it| matches!(it.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock));
            ensure!(!late, "no refusal: {error:#}");
            Ok(())
        }
    }
}

#[test]
fn excluded_inbound_ports_accept_plaintext_under_any_policy() -> Result<()> {
    let (lab, _servers) = lab()?;
    lab.apply("strict", STRICT)?;
    lab.apply("only-web", ONLY_WEB)?;
    policy_in_force(&lab, "shop/db", STRICT_NAME, true)?;
    policy_in_force(&lab, "shop/db", "shop/only-web", true)?;
    let mut table = Rows::new();
    let to = |family, port| SocketAddr::new(lab.pod("shop/db").ip(family), port);
    let plain = ["legacy/old", "legacy/near"];
    for (client, family) in plain.into_iter().flat_map(|client| FAMILIES.map(|family| (client, family))) {
        table.row(&format!("before: {client} {family:?}"), || refused(&lab, client, to(family, METRICS)));
    }
    annotate(&lab, "shop/db", INBOUND_PORTS, Some("9090"))?;
    excluded(&lab, "shop/db", [&[METRICS], &[]])?;
    for (client, family) in plain.into_iter().flat_map(|client| FAMILIES.map(|family| (client, family))) {
        table.row(&format!("excluded: {client} {family:?}"), || {
            let mark = lab.nodes[1].ztunnel.log_mark();
            let answer = ask(&lab.pod(client), to(family, METRICS))?;
            ensure!(answer.saw == lab.pod(client).ip(family), "the server sees {}", answer.saw);
            let record = inbound(&lab.nodes[1], mark, client_end(&answer))?;
            ensure!(record["path"] == "native", "path {}", record["path"]);
            ensure!(record["src.identity"].is_null(), "an identity without a proof: {record}");
            Ok(())
        });
        table.row(&format!("another port: {client} {family:?}"), || refused(&lab, client, to(family, APP)));
    }
    for (client, path, port) in [
        ("shop/web", "tunnel", METRICS),
        ("shop/twin", "direct", METRICS),
        ("shop/web", "tunnel", APP),
        ("shop/twin", "direct", APP),
    ] {
        table.row(&format!("tunnels and direct connections go on: {client} to {port}"), || {
            eventually(&format!("{client} by {path}"), || {
                let found = ask_and_trace(&lab.nodes[1], &lab.pod(client), to(Family::V4, port))?;
                ensure!(found == path, "by {found}");
                Ok(())
            })
        });
    }
    table.row("who must be allowed by tunnel still must", || {
        refused(&lab, "shop/other", to(Family::V4, METRICS))
    });
    table.row("counted, and not as mutual TLS", || {
        eventually("the metric counts them", || {
            let labels = |security| {
                [
                    ("reporter", "destination"),
                    ("destination_workload", "db"),
                    ("source_workload", "old"),
                    ("connection_security_policy", security),
                ]
            };
            let metrics = lab.nodes[1].metrics()?;
            let opened = |security| metrics.sum("istio_tcp_connections_opened_total", &labels(security));
            ensure!(opened("unknown") > 1.5, "{} in plaintext", opened("unknown"));
            ensure!(opened("mutual_tls") < 0.5, "{} in mutual TLS", opened("mutual_tls"));
            Ok(())
        })
    });
    annotate(&lab, "shop/db", INBOUND_PORTS, Some("9090,all"))?;
    excluded(&lab, "shop/db", [&[], &[]])?;
    table.row("a mistake excludes nothing", || refused(&lab, "legacy/old", to(Family::V4, METRICS)));
    table.row("a mistake is said by the controller", || {
        eventually("the controller says it", || {
            let log = lab.controller.log();
            let line =
                log.lines().find(|line| line.contains("excludeInboundPorts") && line.contains("shop/db"));
            ensure!(line.is_some_and(|line| line.contains("is not a port")), "found {line:?}");
            Ok(())
        })
    });
    table.finish();
    lab.finish()
}

#[test]
fn open_connections_close_when_the_exclusion_is_removed() -> Result<()> {
    let (lab, _servers) = lab()?;
    lab.apply("strict", STRICT)?;
    policy_in_force(&lab, "shop/db", STRICT_NAME, true)?;
    annotate(&lab, "shop/db", INBOUND_PORTS, Some("9090"))?;
    excluded(&lab, "shop/db", [&[METRICS], &[]])?;
    let mut open = ambit_suites::connect(
        &lab.pod("legacy/old"),
        SocketAddr::new(lab.pod("shop/db").ip(Family::V4), METRICS),
    )?;
    std::io::Read::read_exact(&mut open, &mut [0])?;
    annotate(&lab, "shop/db", INBOUND_PORTS, None)?;
    let end = std::io::copy(&mut open, &mut std::io::sink());
    ensure!(
        end.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
        "it ends with {end:?}"
    );
    lab.finish()
}

#[test]
fn excluded_outbound_ports_bypass_capture() -> Result<()> {
    const SIZE: usize = 256 << 10;
    let (lab, _servers) = lab()?;
    annotate(&lab, "shop/web", OUTBOUND_PORTS, Some("9090"))?;
    excluded(&lab, "shop/web", [&[], &[METRICS]])?;
    let mut table = Rows::new();
    let rows = FAMILIES.map(|family| (format!("{family:?}"), lab.pod("shop/db").ip(family)));
    let as_ipv6 = ("IPv4 in an IPv6 socket".to_owned(), mapped(lab.pod("shop/db").ip(Family::V4)));
    for (name, address) in rows.into_iter().chain([as_ipv6]) {
        for (client, port, native) in
            [("shop/web", METRICS, true), ("shop/web", APP, false), ("shop/other", METRICS, false)]
        {
            table.row(&format!("{client} to {port}, {name}"), || {
                let mark = lab.nodes[1].ztunnel.log_mark();
                let capture = lab.capture()?;
                let answer =
                    exchange(&lab.pod(client), SocketAddr::new(address, port), &marked_payload(SIZE))?;
                let trace = capture.stop()?;
                let record = inbound(&lab.nodes[1], mark, client_end(&answer))?;
                let (readable, tunnel) = (trace.holding(MARKER), trace.tcp_port(HBONE));
                if native {
                    ensure!(record["path"] == "native", "path {}", record["path"]);
                    ensure!(readable > 0 && tunnel == 0, "{readable} readable, {tunnel} of a tunnel");
                } else {
                    ensure!(record["path"] == "tunnel", "path {}", record["path"]);
                    ensure!(readable == 0 && tunnel > 0, "{readable} readable, {tunnel} of a tunnel");
                }
                Ok(())
            });
        }
    }
    lab.apply("strict", STRICT)?;
    policy_in_force(&lab, "shop/db", STRICT_NAME, true)?;
    let to = SocketAddr::new(lab.pod("shop/db").ip(Family::V4), METRICS);
    table.row("the destination enforces all the same", || refused(&lab, "shop/web", to));
    annotate(&lab, "shop/web", OUTBOUND_PORTS, None)?;
    excluded(&lab, "shop/web", [&[], &[]])?;
    table.row("captured again", || ask(&lab.pod("shop/web"), to).map(drop));
    table.finish();
    lab.finish()
}
