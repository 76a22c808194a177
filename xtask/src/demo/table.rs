//! The live table: one line for each connection that a ztunnel reported, from its access log.

use ambit_harness::Lab;
use serde_json::Value;

/// Reads the access logs onwards from where it last stopped.
#[derive(Debug)]
pub(super) struct Table {
    /// Per node, how much of its log has been shown.
    marks: Vec<u64>,
}

/// One connection as a daemon reported it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub from: String,
    pub to: String,
    pub direction: String,
    pub path: String,
    /// The client's identity: from its certificate in a tunnel, from its enrolment on the direct path.
    pub identity: String,
    pub reason: String,
    pub policy: String,
    pub sent: u64,
    pub received: u64,
    pub duration: String,
    pub error: String,
}

impl Table {
    /// A table that begins with the logs as they are when it first looks.
    pub(super) fn new() -> Self {
        Self { marks: Vec::new() }
    }

    /// Forgets what is in the logs by now.
    pub(super) fn skip(&mut self, lab: &Lab) {
        self.marks = lab.nodes.iter().map(|node| node.ztunnel.log_mark()).collect();
    }

    /// The connections reported since the last call.
    pub(super) fn rows(&mut self, lab: &Lab) -> Vec<Row> {
        self.marks.resize(lab.nodes.len(), 0);
        let mut rows = Vec::new();
        for (node, mark) in lab.nodes.iter().zip(&mut self.marks) {
            let next = node.ztunnel.log_mark();
            rows.extend(node.records_since(*mark).iter().filter_map(row));
            *mark = next;
        }
        rows
    }
}

/// The column titles.
pub(super) fn head() {
    println!(
        "\x1b[2m{:<16} {:<22} {:<9} {:<9} {:<40} {:>7} {:>7} {:>8}  result\x1b[0m",
        "from", "to", "seen by", "path", "client identity", "up", "down", "time"
    );
}

/// One connection.
pub(super) fn print(row: &Row) {
    let result = match (row.error.as_str(), row.policy.as_str()) {
        ("", _) => "\x1b[32mallowed\x1b[0m".to_owned(),
        (_, "") => format!("\x1b[31mrefused\x1b[0m: {}", row.reason),
        (_, policy) => format!("\x1b[31mrefused\x1b[0m by {policy}"),
    };
    println!(
        "{:<16} {:<22} {:<9} {:<9} {:<40} {:>7} {:>7} {:>8}  {result}",
        row.from, row.to, row.direction, row.path, row.identity, row.sent, row.received, row.duration
    );
}

/// A record of the access log; other lines of the log are none.
fn row(record: &Value) -> Option<Row> {
    if record.get("target")?.as_str()? != "access" {
        return None;
    }
    let fields = record.get("fields").unwrap_or(record);
    let text = |name: &str| match fields.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let number = |name: &str| fields.get(name).and_then(Value::as_u64).unwrap_or(0);
    let end = |workload: String, address: String| if workload.is_empty() { address } else { workload };
    Some(Row {
        from: end(text("src.workload"), text("src.addr")),
        to: end(text("dst.workload"), text("dst.addr")),
        direction: if text("direction") == "inbound" { "server" } else { "client" }.to_owned(),
        path: text("path"),
        identity: text("src.identity").replace("spiffe://", ""),
        reason: text("reason"),
        policy: text("policy"),
        sent: number("bytes_sent"),
        received: number("bytes_recv"),
        duration: text("duration"),
        error: text("error"),
    })
}
