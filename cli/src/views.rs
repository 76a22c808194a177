//! The answers of a daemon's admin interface as tables. Pure.

use serde_json::Value;

use crate::table::Table;

/// What to show of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum View {
    /// Its configuration: pods, certificates, workloads, services, policies.
    Config,
    /// The open connections, on every path.
    Connections,
    /// The last connections that ended, were denied or failed, and why.
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

/// The answers of daemons, by node name, as tables; only of one pod if it is given (`namespace/name`).
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

/// Whether a pod is the source or the destination of a connection.
fn concerns(connection: &Value, pod: &str) -> bool {
    [&connection["source"], &connection["destination"]].iter().any(|end| is_pod(&end["workload"], pod))
}

/// Whether a workload's uid is that of a pod, of any cluster.
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
        (true, true) => "connected, configuration in force".to_owned(),
        (true, false) => "connected, applying a change".to_owned(),
        (false, _) => format!("not connected: {}", text(&xds["error"])),
    };
    let head = format!("node {node}: ztunnel {}, {state}", text(&dump["version"]));
    format!("{head}\n\n{pods}\n{certificates}\n{workloads}\n{services}\n{policies}\n")
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A cell with a text, a number or nothing.
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

/// A workload's uid without the cluster; of pods, also without the kind.
fn workload(uid: &Value) -> String {
    let uid = text(uid);
    let name = uid.split_once("//").map_or(uid.as_str(), |(_, name)| name);
    name.strip_prefix("Pod/").unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests;
