//! The daemons' and a waypoint's metrics as a real Prometheus sees them: format, names, the guide, and every
//! query of the dashboard and of the alerts.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, Process, ServiceSpec, Waypoint, eventually};
use ambit_suites::shop::{CART, DB, shop};
use ambit_suites::web::{self, WebServer};
use ambit_suites::{Rows, ask};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const ZTUNNEL: u16 = 15020;
const CONTROLLER: u16 = 15014;
const PROMETHEUS: u16 = 19090;

/// Refuses a port of the database to the bank, and evaluates a dry run for every source.
const POLICIES: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: \
                        shop, name: no-bank}\nspec:\n  selector: {matchLabels: {app: db}}\n  action: DENY\n  \
                        rules: [{from: [{source: {namespaces: [bank]}}]}]\n---\napiVersion: \
                        security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: \
                        dry, annotations: {istio.io/dry-run: \"true\"}}\nspec:\n  selector: {matchLabels: \
                        {app: db}}\n  action: DENY\n  rules: [{from: [{source: {namespaces: [shop]}}]}]\n";

/// A service behind a waypoint, with a route for one path: others get 404, and one a backend that is missing.
const MARKET: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {namespace: market, \
                      name: waypoint}\nspec:\n  gatewayClassName: ambit-waypoint\n  listeners: [{name: mesh, \
                      port: 15008, protocol: HBONE}]\n---\napiVersion: \
                      gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {namespace: market, name: \
                      stall}\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: stall}]\n  rules:\n  \
                      \x20 - matches: [{path: {type: PathPrefix, value: /open}}]\n      backendRefs: [{name: \
                      stall, port: 80}]\n    - matches: [{path: {type: PathPrefix, value: /gone}}]\n      \
                      backendRefs: [{name: missing, port: 80}]\n";

/// Both pages that list metrics.
fn guide() -> Result<String> {
    Ok(read("docs/guide/telemetry.md")? + &read("docs/guide/waypoint.md")?)
}

fn read(path: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
}

/// The metrics that an exposition announces.
fn announced(text: &str) -> BTreeSet<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    names.map(str::to_owned).collect()
}

/// The metrics that have a row in the guide.
fn documented(guide: &str) -> BTreeSet<String> {
    let names = guide.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    names
        .filter(|name| ["ambit_", "istio_", "process_"].iter().any(|start| name.starts_with(start)))
        .map(str::to_owned)
        .collect()
}

/// The labels that the guide says each of our own metrics has.
fn documented_labels(guide: &str) -> BTreeMap<String, BTreeSet<String>> {
    let rows = guide.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `ambit_")?.split('|');
        let name = format!("ambit_{}", cells.next()?.split('`').next()?);
        let labels = cells.next()?;
        // Their values are in parentheses.
        let names = labels.split('(').filter_map(|part| part.rsplit(')').next());
        let names = names.flat_map(|part| part.split('`').skip(1).step_by(2));
        Some((name, names.map(str::to_owned).collect()))
    });
    rows.collect()
}

/// What is wrong with the labels of a sample of one of our own metrics.
fn wrong_labels(line: &str, documented: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let (name, labels) = line.split_once('{').unwrap_or((line.split(' ').next()?, ""));
    if !name.starts_with("ambit_") {
        return None;
    }
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    let family = of_histogram.filter(|family| documented.contains_key(*family)).unwrap_or(name);
    let names = labels.rsplit_once('}').map_or("", |(labels, _)| labels).split("\",");
    let mut names: BTreeSet<String> =
        names.filter_map(|label| Some(label.split_once('=')?.0.to_owned())).collect();
    if family != name {
        names.remove("le");
    }
    (documented.get(family) != Some(&names)).then(|| format!("{family} has the labels {names:?}"))
}

/// What promtool says against an exposition; nothing when all is well. Istio's names are not ours to choose.
fn promtool(text: &str) -> Result<String> {
    let mut child = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to start promtool")?;
    child.stdin.take().context("promtool has no input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok(said.lines().filter(|line| !line.starts_with("istio_")).collect::<Vec<_>>().join("\n"))
}

/// A namespace with a waypoint, requests of every kind through which the dashboard tells them apart.
fn market(lab: &Lab) -> Result<(Waypoint, WebServer)> {
    lab.label_namespace(NamespaceSpec::mesh("market").label("istio.io/use-waypoint", "waypoint"))?;
    let stall = lab.add_pod(PodSpec::new("market/stall").node(1))?;
    lab.add_service(ServiceSpec::new("market/stall").port(80, CART).protocol("http"))?;
    lab.add_service(ServiceSpec::new("market/waypoint").port(15008, 15008))?;
    lab.apply("market", MARKET)?;
    let server = WebServer::start(&stall, "stall", CART)?;
    let waypoint = lab.waypoint(PodSpec::new("market/waypoint"), "market/waypoint", "")?;
    let (web, service) = (lab.pod("shop/web"), SocketAddr::new(lab.service("market/stall", Family::V4), 80));
    let grpc = ("content-type", "application/grpc");
    for (path, headers, expected) in
        [("/open", &[][..], 200), ("/closed", &[], 404), ("/gone", &[], 500), ("/closed", &[grpc], 200)]
    {
        eventually(&format!("{path} is answered with {expected}"), || {
            let answer = web::get(&web, service, path, headers)?;
            ensure!(answer.status == expected, "{}", answer.head);
            let labels = [("response_code", &*expected.to_string())];
            ensure!(waypoint.metrics()?.sum("istio_requests_total", &labels) > 0.0, "not by the waypoint");
            Ok(())
        })?;
    }
    Ok((waypoint, server))
}

/// A real server that scrapes both nodes and the waypoint every second.
fn prometheus(lab: &Lab, waypoint: &Waypoint) -> Result<Process> {
    let place = &lab.nodes[0].place;
    let folder = lab.dir().join("prometheus");
    std::fs::create_dir_all(&folder)?;
    let addresses = lab.nodes.iter().map(|node| node.place.v4).chain([waypoint.pod.v4]);
    let targets: Vec<String> = addresses.map(|address| format!("\"{address}:{ZTUNNEL}\"")).collect();
    let config = folder.join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n  - job_name: ztunnel\n    \
         static_configs: [{{targets: [{}]}}]\n",
        targets.join(", ")
    );
    std::fs::write(&config, text)?;
    place.start(
        "prometheus",
        &[
            &format!("--config.file={}", config.display()),
            &format!("--storage.tsdb.path={}", folder.join("data").display()),
            &format!("--web.listen-address=127.0.0.1:{PROMETHEUS}"),
        ],
    )
}

/// One question of Prometheus' HTTP interface; the data of the answer.
fn get(lab: &Lab, path: &str, query: Option<&str>) -> Result<Value> {
    let url = format!("http://127.0.0.1:{PROMETHEUS}{path}");
    let mut arguments = vec!["-sS", "--max-time", "5", "-G", &url];
    let parameter = query.map(|query| format!("query={query}"));
    if let Some(parameter) = &parameter {
        arguments.extend(["--data-urlencode", parameter]);
    }
    let answer: Value = serde_json::from_str(&lab.nodes[0].place.output("curl", &arguments)?)?;
    ensure!(answer["status"] == "success", "{query:?}: {answer}");
    Ok(answer["data"].clone())
}

/// Asks a query, whose metrics must be `shown`: one about a metric that does not exist succeeds as well.
fn asks(lab: &Lab, query: &str, shown: &BTreeSet<String>) -> Result<Value> {
    let data = get(lab, "/api/v1/query", Some(query))?;
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    for name in words.filter(|word| ["ambit_", "istio_", "process_"].iter().any(|s| word.starts_with(s))) {
        let family = ["_bucket", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        ensure!(shown.contains(family), "{family} is no metric of ours");
    }
    Ok(data["result"].clone())
}

#[test]
fn prometheus_scrapes_every_documented_metric() -> Result<()> {
    let (lab, _servers) = shop()?;
    lab.apply("policies", POLICIES)?;
    let db = SocketAddr::new(lab.pod("shop/db").v4.into(), DB);
    // The first that gets no answer may have been let in and cut off: that is no refusal.
    eventually("the bank is refused", || {
        ensure!(ask(&lab.pod("bank/teller"), db).is_err());
        let refused = [("response_flags", "DENY"), ("reporter", "destination")];
        ensure!(lab.nodes[1].metrics()?.sum("istio_tcp_connections_failed_total", &refused) >= 1.0);
        Ok(())
    })?;
    for client in ["shop/web", "shop/cart-2", "legacy/old"] {
        ask(&lab.pod(client), db)?;
    }

    let (waypoint, _stall) = market(&lab)?;

    let mut table = Rows::new();
    let mut shown = BTreeSet::new();
    let texts = [
        ("ztunnel, node a", lab.nodes[0].get(ZTUNNEL, "/metrics")?),
        ("ztunnel, node b", lab.nodes[1].get(ZTUNNEL, "/metrics")?),
        ("controller", lab.controller_get(CONTROLLER, "/metrics")?),
        ("waypoint", waypoint.daemon.get(ZTUNNEL, "/metrics")?),
    ];
    for (name, text) in &texts {
        shown.extend(announced(text));
        table.row(&format!("promtool: {name}"), || {
            let said = promtool(text)?;
            ensure!(said.trim().is_empty(), "{said}");
            Ok(())
        });
    }
    table.row("the guide and the daemons have the same metrics", || {
        let documented = documented(&guide()?);
        let missing: Vec<_> = shown.difference(&documented).collect();
        let gone: Vec<_> = documented.difference(&shown).collect();
        ensure!(missing.is_empty() && gone.is_empty(), "not in the guide: {missing:?}; not shown: {gone:?}");
        Ok(())
    });
    table.row("and the same labels", || {
        let documented = documented_labels(&guide()?);
        let lines = texts.iter().flat_map(|(_, text)| text.lines());
        let samples = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let wrong: BTreeSet<String> = samples.filter_map(|line| wrong_labels(line, &documented)).collect();
        ensure!(wrong.is_empty(), "{wrong:?}");
        Ok(())
    });
    table.row("dry runs are counted, matched and not", || {
        let metrics = lab.nodes[1].metrics()?;
        for matched in ["true", "false"] {
            let labels = [("policy", "dry"), ("namespace", "shop"), ("action", "deny"), ("matched", matched)];
            let count = metrics.sum("ambit_policy_dry_run_total", &labels);
            ensure!(count >= 1.0, "matched {matched}: {count}");
        }
        Ok(())
    });
    table.row("handshakes and connecting are measured", || {
        for (node, name, labels) in [
            (0, "ambit_connect_duration_seconds_count", ("path", "tunnel")),
            (0, "ambit_tls_handshake_duration_seconds_count", ("role", "client")),
            (1, "ambit_tls_handshake_duration_seconds_count", ("role", "server")),
            (1, "ambit_application_connect_duration_seconds_count", ("direction", "inbound")),
        ] {
            ensure!(lab.nodes[node].metrics()?.sum(name, &[labels]) >= 1.0, "{name} on node {node}");
        }
        Ok(())
    });

    let mut server = prometheus(&lab, &waypoint)?;
    table.row("both nodes and the waypoint are scraped", || {
        eventually("all targets are up", || {
            let data = get(&lab, "/api/v1/query", Some("sum(up)"))?;
            ensure!(data["result"][0]["value"][1] == "3", "{data}\n{}", server.log());
            Ok(())
        })
    });
    table.row("Prometheus holds what the daemons count", || {
        let query =
            "sum(istio_tcp_connections_failed_total{response_flags=\"DENY\",reporter=\"destination\"})";
        eventually("the refused connections are there", || {
            let data = get(&lab, "/api/v1/query", Some(query))?;
            let count: f64 = data["result"][0]["value"][1].as_str().context("no value")?.parse()?;
            ensure!(count >= 1.0, "{count}");
            Ok(())
        })
    });
    let dashboard: Value = serde_json::from_str(&read("deploy/dashboards/ambit.json")?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    ensure!(panels.len() >= 10, "{} panels", panels.len());
    let (rows, panels): (Vec<&Value>, _) = panels.iter().partition(|panel| panel["type"] == "row");
    ensure!(rows.len() == 1, "{rows:?}");
    for panel in panels {
        let title = panel["title"].as_str().context("no title")?;
        let query = panel["targets"][0]["expr"].as_str().context("no query")?;
        // Under the row there is something to see of each kind of request.
        let is_http = panel["gridPos"]["y"].as_u64() > rows[0]["gridPos"]["y"].as_u64();
        table.row(&format!("dashboard: {title}"), || {
            eventually("it is answered", || {
                let result = asks(&lab, query, &shown)?;
                ensure!(!is_http || result.as_array().is_some_and(|it| !it.is_empty()), "nothing to see");
                Ok(())
            })
        });
    }
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/alerts"))? {
        let file = file?.path();
        let name = file.file_name().context("no name")?.to_string_lossy().into_owned();
        table.row(&format!("alerts: {name}"), || {
            let output =
                std::process::Command::new("promtool").args(["check", "rules"]).arg(&file).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let rules = std::fs::read_to_string(&file)?;
            let queries: Vec<&str> =
                rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
            ensure!(!queries.is_empty(), "no rules");
            queries.into_iter().try_for_each(|query| asks(&lab, query, &shown).map(drop))
        });
    }
    server.kill()?;
    table.finish();
    lab.finish()
}
