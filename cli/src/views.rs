//! What a daemon's admin interface says, as tables. Pure.

use serde_json::Value;

use crate::table::Table;

/// What to ask a daemon for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum View {
    /// What it knows: pods, certificates, workloads, services, policies.
    Config,
    /// The connections that are open, whoever carries them.
    Connections,
    /// The last ones that ended, were refused or could not be made, and why.
    Recent,
}

impl View {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Config => "/config_dump",
            Self::Connections => "/connections",
            Self::Recent => "/connections/recent",
        }
    }
}

/// The answers of daemons by the names of their nodes, as tables; of one pod alone if one is named
/// (`namespace/name`).
pub(crate) fn tables(view: View, answers: &[(String, Value)], pod: Option<&str>) -> String {
    match view {
        View::Connections => connections(answers, pod, false).to_string(),
        View::Recent => connections(answers, pod, true).to_string(),
        View::Config => answers.iter().map(|(node, answer)| config(node, answer, pod)).collect(),
    }
}

fn connections(answers: &[(String, Value)], pod: Option<&str>, ended: bool) -> Table {
    let mut head =
        vec!["NODE", "DIRECTION", "PATH", "TLS", "SOURCE", "FROM", "DESTINATION", "TO", "SERVICE", "POLICY"];
    head.extend(["SECONDS", "FROM-CLIENT", "FROM-SERVER"]);
    if ended {
        head.extend(["AGO", "REASON", "ERROR"]);
    }
    let mut table = Table::new(&head);
    for (node, answer) in answers {
        for it in items(answer).filter(|it| pod.is_none_or(|pod| concerns(it, pod))) {
            let tls = if it["mutual_tls"] == true { "mutual" } else { "none" };
            let mut cells = vec![node.clone(), text(&it["direction"]), text(&it["path"]), tls.to_owned()];
            for end in [&it["source"], &it["destination"]] {
                cells.extend([workload(&end["workload"]), text(&end["address"])]);
            }
            cells.extend([text(&it["service"]), text(&it["policy"]), tenths(&it["seconds"])]);
            cells.extend([text(&it["bytes_from_client"]), text(&it["bytes_from_server"])]);
            if ended {
                cells.extend([tenths(&it["seconds_ago"]), text(&it["reason"]), text(&it["error"])]);
            }
            table.row(cells);
        }
    }
    table
}

/// Whether a pod is an end of a connection.
fn concerns(connection: &Value, pod: &str) -> bool {
    [&connection["source"], &connection["destination"]].iter().any(|end| is_pod(&end["workload"], pod))
}

/// Whether a workload's uid is that of a pod, in whatever cluster.
fn is_pod(uid: &Value, pod: &str) -> bool {
    uid.as_str().and_then(|uid| uid.split_once("//Pod/")).is_some_and(|(_, name)| name == pod)
}

fn config(node: &str, dump: &Value, pod: Option<&str>) -> String {
    let ours = |it: &&Value| pod.is_none_or(|pod| is_pod(&it["uid"], pod));
    let mut pods = Table::new(&["POD", "KNOWN", "IDENTITY", "PLAINTEXT"]);
    for it in items(&dump["pods"]).filter(ours) {
        pods.row([
            workload(&it["uid"]),
            text(&it["known"]),
            text(&it["identity"]),
            text(&it["plaintext"]["default"]),
        ]);
    }
    let mut certificates = Table::new(&["CERTIFICATE", "FROM", "UNTIL", "ERROR"]);
    let identities: Vec<&Value> = items(&dump["pods"]).filter(ours).map(|it| &it["identity"]).collect();
    for it in items(&dump["certificates"]).filter(|it| pod.is_none() || identities.contains(&&it["identity"]))
    {
        certificates.row([
            text(&it["identity"]),
            text(&it["not_before"]),
            text(&it["not_after"]),
            text(&it["error"]),
        ]);
    }
    let mut workloads =
        Table::new(&["WORKLOAD", "ADDRESSES", "NODE", "IN-MESH", "HEALTHY", "IDENTITY", "POLICIES"]);
    for it in items(&dump["workloads"]).filter(ours) {
        let places = [workload(&it["uid"]), list(&it["addresses"]), text(&it["node"])];
        let rest = [text(&it["in_mesh"]), text(&it["healthy"]), text(&it["identity"]), list(&it["policies"])];
        workloads.row(places.into_iter().chain(rest));
    }
    let mut services = Table::new(&["SERVICE", "ADDRESSES", "PORTS"]);
    for it in items(&dump["services"]) {
        let ports =
            it["ports"].as_object().into_iter().flatten().map(|(port, target)| format!("{port}>{target}"));
        services.row([text(&it["key"]), list(&it["addresses"]), ports.collect::<Vec<_>>().join(",")]);
    }
    let mut policies = Table::new(&["POLICY", "SCOPE", "ACTION", "DRY-RUN", "RULES"]);
    for it in items(&dump["policies"]) {
        let rules = items(&it["rules"]).count();
        policies.row([
            text(&it["key"]),
            text(&it["scope"]),
            text(&it["action"]),
            text(&it["dry_run"]),
            rules.to_string(),
        ]);
    }
    let xds = &dump["xds"];
    let state = match (xds["connected"] == true, dump["enforced"] == true) {
        (true, true) => "connected, all that it knows is in force".to_owned(),
        (true, false) => "connected, taking in a change".to_owned(),
        (false, _) => format!("not connected: {}", text(&xds["error"])),
    };
    let head = format!("node {node}: ztunnel {}, {state}", text(&dump["version"]));
    format!("{head}\n\n{pods}\n{certificates}\n{workloads}\n{services}\n{policies}\n")
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A cell of a word, a number or nothing.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn list(value: &Value) -> String {
    items(value).map(text).collect::<Vec<_>>().join(",")
}

fn tenths(value: &Value) -> String {
    value.as_f64().map(|seconds| format!("{seconds:.1}")).unwrap_or_default()
}

/// A workload's uid without the cluster; pods, which most are, without their kind.
fn workload(uid: &Value) -> String {
    let uid = text(uid);
    let name = uid.split_once("//").map_or(uid.as_str(), |(_, name)| name);
    name.strip_prefix("Pod/").unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn connection(source: Option<&str>) -> Value {
        json!({
            "direction": "outbound", "path": "tunnel", "mutual_tls": true,
            "source": { "address": "10.0.0.1:4000", "workload": source },
            "destination": { "address": "10.0.1.1:8080", "workload": "Kubernetes//Pod/shop/cart" },
            "service": "shop/cart.shop.svc.cluster.local", "seconds": 1.26, "bytes_from_client": 5, "bytes_from_server": 7,
        })
    }

    /// The cells of a table's rows, its head left out.
    fn cells(table: &str) -> Vec<Vec<String>> {
        table.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }

    #[test]
    fn open_connections() {
        let answer = json!([connection(Some("Kubernetes//Pod/shop/web")), connection(None)]);
        let answers = [("n1".to_owned(), answer)];
        let first = "n1 outbound tunnel mutual shop/web 10.0.0.1:4000 shop/cart 10.0.1.1:8080 \
                     shop/cart.shop.svc.cluster.local - 1.3 5 7";
        let second = first.replace("shop/web", "-");
        let rows: [(&str, Option<&str>, &[&str]); 4] = [
            ("all", None, &[first, &second]),
            ("of its client", Some("shop/web"), &[first]),
            ("of its server", Some("shop/cart"), &[first, &second]),
            ("of another", Some("shop/car"), &[]),
        ];
        for (name, pod, expected) in rows {
            let shown: Vec<String> = cells(&tables(View::Connections, &answers, pod))
                .iter()
                .map(|cells| cells.join(" "))
                .collect();
            assert_eq!(shown, expected, "{name}");
        }
    }

    #[test]
    fn those_that_ended_say_why() {
        let mut ended = connection(None);
        ended["seconds_ago"] = json!(12.0);
        ended["reason"] = json!("policy_denied");
        let shown = tables(View::Recent, &[("n1".to_owned(), json!([ended]))], None);
        let row = cells(&shown).remove(0);
        assert_eq!(row[row.len() - 3..], ["12.0", "policy_denied", "-"]);
    }

    #[test]
    fn what_a_daemon_knows() {
        let dump = json!({
            "version": "0.1.0", "enforced": true, "xds": { "connected": true },
            "pods": [
                { "uid": "k//Pod/shop/web", "known": true, "identity": "spiffe://web", "plaintext": { "default": "open" } },
                { "uid": "k//Pod/shop/cart", "known": true, "identity": "spiffe://cart", "plaintext": { "default": "strict" } },
            ],
            "certificates": [{ "identity": "spiffe://web", "not_after": "2026" }, { "identity": "spiffe://cart" }],
            "workloads": [{ "uid": "k//Pod/shop/web", "addresses": ["10.0.0.1"], "node": "n1", "in_mesh": true, "healthy": true }],
            "services": [{ "key": "shop/web", "addresses": ["10.9.0.1"], "ports": { "80": 8080 } }],
            "policies": [{ "key": "shop/p", "scope": "Namespace", "action": "Deny", "dry_run": false, "rules": ["a", "b"] }],
        });
        let shown = tables(View::Config, &[("n1".to_owned(), dump.clone())], None);
        assert!(
            shown.starts_with("node n1: ztunnel 0.1.0, connected, all that it knows is in force\n"),
            "{shown}"
        );
        let has = |shown: &str, row: &str| cells(shown).iter().any(|cells| cells.join(" ") == row);
        for row in [
            "shop/web true spiffe://web open",
            "shop/cart true spiffe://cart strict",
            "spiffe://web - 2026 -",
            "shop/web 10.0.0.1 n1 true true - -",
            "shop/web 10.9.0.1 80>8080",
            "shop/p Namespace Deny false 2",
        ] {
            assert!(has(&shown, row), "no {row:?} in\n{shown}");
        }
        let shown = tables(View::Config, &[("n1".to_owned(), dump)], Some("shop/web"));
        assert!(
            has(&shown, "shop/web true spiffe://web open") && !shown.contains("spiffe://cart"),
            "{shown}"
        );
    }
}
