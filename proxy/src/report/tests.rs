//! Connections' reports, in metrics and in the access log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::model::{PolicyKey, Workload, WorkloadKind};
use ambit_core::{Reason, testing};
use ambit_daemon_kit::telemetry::exposition::Exposition;
use ambit_daemon_kit::telemetry::logs::Format;
use ambit_daemon_kit::telemetry::logs::captured::capture;

use super::observed::{self, Carried};
use super::*;

fn workload(name: &str) -> Arc<Workload> {
    let mut workload = testing::pod(&format!("shop/{name}-1"), &[]);
    workload.service_account = name.into();
    workload.node = "a".into();
    workload.kind = WorkloadKind::Deployment;
    workload.workload_name = name.into();
    workload.canonical_name = name.into();
    workload.canonical_revision = "".into();
    Arc::new(workload)
}

fn party(name: &str, address: &str) -> Party {
    let workload = workload(name);
    Party {
        address: address.parse().expect("an address"),
        identity: Some(workload.identity()),
        workload: Some(workload),
    }
}

/// An outbound tunnel from one workload to another's service.
pub(crate) fn info(source: &str, destination: &str) -> ConnectionInfo {
    ConnectionInfo {
        direction: Direction::Outbound,
        path: Path::Tunnel,
        mutual_tls: true,
        source: party(source, "10.0.0.1:40000"),
        destination: party(destination, "10.0.1.2:15008"),
        hbone_address: Some("10.0.1.2:8080".parse().expect("an address")),
        client: None,
        service: Some(Arc::new(testing::service(&format!("shop/{destination}"), &[], &[]))),
    }
}

fn orderly() -> Ending {
    Ending { reason: Reason::Closed, flag: Flag::None, error: None, policy: None }
}

fn denied() -> Ending {
    Ending {
        reason: Reason::PolicyDenied,
        flag: Flag::Denied,
        error: Some("connection refused by policy".to_owned()),
        policy: Some(PolicyKey { namespace: "shop".into(), name: "cart".into() }),
    }
}

/// The rendered series of one source workload: name, sorted labels, value.
fn series(source: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut all = Exposition::default();
    show(&mut all);
    let text = all.into_text();
    let mine = format!("source_workload=\"{source}\"");
    text.lines()
        .filter(|line| line.contains(&mine))
        .map(|line| {
            let (name, rest) = line.split_once('{').expect("labels");
            let (labels, value) = rest.rsplit_once("} ").expect("a value");
            let mut labels: BTreeMap<String, String> = labels
                .trim_end_matches('"')
                .split("\",")
                .map(|label| label.split_once("=\"").expect("a label"))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            labels.insert("VALUE".to_owned(), value.to_owned());
            (name.to_owned(), labels)
        })
        .collect()
}

#[test]
fn connection_counted_with_istios_names_and_labels() {
    let open = opened(info("names", "cart"));
    open.progress(Bytes { from_client: 5, from_server: 70 });
    open.progress(Bytes { from_client: 5, from_server: 70 });
    open.closed(Bytes { from_client: 10, from_server: 100 }, &orderly());
    let all = series("names");
    let values: Vec<_> = all.iter().map(|(name, labels)| (name.as_str(), labels["VALUE"].as_str())).collect();
    assert_eq!(
        values,
        [
            ("istio_tcp_connections_closed_total", "1"),
            ("istio_tcp_connections_opened_total", "1"),
            ("istio_tcp_received_bytes_total", "10"),
            ("istio_tcp_sent_bytes_total", "100"),
        ]
    );
    let expected = [
        ("connection_security_policy", "mutual_tls"),
        ("destination_app", "cart"),
        ("destination_canonical_revision", "unknown"),
        ("destination_canonical_service", "cart"),
        ("destination_cluster", "Kubernetes"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/cart"),
        ("destination_service", "cart.shop.svc.cluster.local"),
        ("destination_service_name", "cart"),
        ("destination_service_namespace", "shop"),
        ("destination_version", "unknown"),
        ("destination_workload", "cart"),
        ("destination_workload_namespace", "shop"),
        ("reporter", "source"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
        ("source_app", "names"),
        ("source_canonical_revision", "unknown"),
        ("source_canonical_service", "names"),
        ("source_cluster", "Kubernetes"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/names"),
        ("source_version", "unknown"),
        ("source_workload", "names"),
        ("source_workload_namespace", "shop"),
    ];
    let mut labels = all["istio_tcp_connections_opened_total"].clone();
    labels.remove("VALUE");
    let labels: Vec<_> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(labels, expected);
}

#[test]
fn refused_connection_counted_as_failed_and_never_opened() {
    failed(&info("refused", "cart"), Instant::now(), &denied());
    let all = series("refused");
    assert_eq!(all.keys().collect::<Vec<_>>(), ["istio_tcp_connections_failed_total"]);
    assert_eq!(all["istio_tcp_connections_failed_total"]["response_flags"], "DENY");
}

#[test]
fn no_principal_without_tls() {
    let plain = ConnectionInfo { mutual_tls: false, path: Path::Plaintext, ..info("plain", "cart") };
    opened(plain).closed(Bytes::default(), &orderly());
    let labels = &series("plain")["istio_tcp_connections_opened_total"];
    assert_eq!(labels["connection_security_policy"], "unknown");
    assert_eq!(
        (labels["source_principal"].as_str(), labels["destination_principal"].as_str()),
        ("unknown", "unknown")
    );
}

#[test]
fn dropped_connection_reported_once() {
    drop(opened(info("dropped", "cart")));
    assert_eq!(series("dropped")["istio_tcp_connections_closed_total"]["VALUE"], "1");
}

/// What is logged at INFO while `report` runs.
fn logged(format: Format, report: impl FnOnce()) -> String {
    let (captured, subscriber, _control) = capture(format, "info");
    tracing::subscriber::with_default(subscriber, report);
    captured.text()
}

#[test]
fn access_log_has_istios_fields() {
    let bytes = Bytes { from_client: 10, from_server: 100 };
    let text = logged(Format::Json, || {
        opened(info("logged", "cart")).closed(bytes, &denied());
    });
    let mut record: serde_json::Map<_, _> = serde_json::from_str(&text).expect("one record");
    let duration = record.remove("duration").expect("a duration");
    assert!(duration.as_str().is_some_and(|text| text.ends_with("ms")), "{duration}");
    record.remove("timestamp").expect("a timestamp");
    assert_eq!(
        serde_json::Value::Object(record),
        serde_json::json!({
            "level": "WARN", "target": "access", "message": "connection complete",
            "src.addr": "10.0.0.1:40000", "src.workload": "logged-1", "src.namespace": "shop",
            "src.identity": "spiffe://cluster.local/ns/shop/sa/logged",
            "dst.addr": "10.0.1.2:15008", "dst.hbone_addr": "10.0.1.2:8080",
            "dst.service": "cart.shop.svc.cluster.local", "dst.workload": "cart-1", "dst.namespace": "shop",
            "dst.identity": "spiffe://cluster.local/ns/shop/sa/cart",
            "direction": "outbound", "path": "tunnel", "bytes_sent": 10, "bytes_recv": 100,
            "reason": "policy_denied", "policy": "shop/cart", "error": "connection refused by policy",
        })
    );
}

/// The names in the first column of the first table after a heading of the guide.
fn documented(heading: &str, first: &str) -> BTreeSet<String> {
    let guide = include_str!("../../../docs/guide/telemetry.md");
    let section = guide.split(&format!("## {heading}\n")).nth(1).expect("the section");
    let rows = section.lines().skip_while(|line| !line.starts_with(&format!("| {first} |"))).skip(2);
    rows.map_while(|row| row.strip_prefix("| ")?.split(" | ").next())
        .flat_map(|names| names.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

#[test]
fn guide_documents_every_label_and_field() {
    opened(info("guide", "cart")).closed(Bytes::default(), &orderly());
    let mut labels: BTreeSet<String> =
        series("guide")["istio_tcp_connections_opened_total"].keys().cloned().collect();
    labels.remove("VALUE");
    assert_eq!(documented("Connection metrics", "label"), labels);

    // A refused one has all fields.
    let text = logged(Format::Json, || opened(info("guide", "cart")).closed(Bytes::default(), &denied()));
    let record: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).expect("one record");
    let of_every_line = ["timestamp", "level", "target", "message"];
    let fields: BTreeSet<String> =
        record.into_keys().filter(|field| !of_every_line.contains(&field.as_str())).collect();
    assert_eq!(documented("The access log", "field"), fields);
}

#[test]
fn bytes_in_the_log_are_named_from_this_nodes_side() {
    let bytes = Bytes { from_client: 10, from_server: 100 };
    for (direction, sent, received) in [(Direction::Outbound, 10, 100), (Direction::Inbound, 100, 10)] {
        let text = logged(Format::Text, || {
            opened(ConnectionInfo { direction, ..info("sides", "cart") }).closed(bytes, &orderly());
        });
        assert!(text.contains(&format!("bytes_sent={sent} bytes_recv={received} ")), "{direction:?}: {text}");
        assert!(text.contains(" INFO access: connection complete "), "{direction:?}: {text}");
    }
}

#[test]
fn kernel_carried_bytes_counted_once_whichever_records_arrive() {
    let direct = ConnectionInfo { path: Path::Direct, mutual_tls: false, ..info("observed", "cart") };
    let bytes = |from_client, from_server| Bytes { from_client, from_server };
    observed::opened(&direct);
    let first = observed::carried(&direct, Carried { total: bytes(5, 7), counted: Bytes::default() });
    assert_eq!(first.counted, bytes(5, 7));
    let again = observed::carried(&direct, Carried { total: bytes(4, 9), ..first });
    assert_eq!(again.counted, bytes(5, 9), "what was counted is not taken back");
    let end = Carried { total: bytes(10, 100), ..again };
    observed::closed(&direct, end, Duration::from_secs(3), &orderly());
    // Another, of which only the end was seen.
    let end = Carried { total: bytes(1, 2), counted: Bytes::default() };
    observed::closed(&direct, end, Duration::from_secs(3), &orderly());
    observed::refused(&direct, &denied());
    let all = series("observed");
    let values: Vec<_> = all.iter().map(|(name, labels)| (name.as_str(), labels["VALUE"].as_str())).collect();
    assert_eq!(
        values,
        [
            ("istio_tcp_connections_closed_total", "2"),
            ("istio_tcp_connections_failed_total", "1"),
            ("istio_tcp_connections_opened_total", "1"),
            ("istio_tcp_received_bytes_total", "11"),
            ("istio_tcp_sent_bytes_total", "102"),
        ]
    );
    let labels = &all["istio_tcp_connections_opened_total"];
    assert_eq!(labels["connection_security_policy"], "unknown", "there was no TLS");
    assert_eq!(labels["source_principal"], "spiffe://cluster.local/ns/shop/sa/observed", "the kernel knows");
}

#[test]
fn every_ending_counted_with_its_reason() {
    let ended = |reason| Ending { reason, ..orderly() };
    let native =
        ConnectionInfo { path: Path::Native, direction: Direction::Inbound, ..info("ended", "cart") };
    opened(native.clone()).closed(Bytes::default(), &ended(Reason::Drained));
    failed(&native, Instant::now(), &ended(Reason::BadRequest));
    observed::refused(&info("ended", "cart"), &ended(Reason::BadRequest));
    let mut all = Exposition::default();
    show(&mut all);
    let text = all.into_text();
    for line in [
        r#"ambit_connections_ended_total{reason="drained",direction="inbound",path="native"} 1"#,
        r#"ambit_connections_ended_total{reason="bad_request",direction="inbound",path="native"} 1"#,
        r#"ambit_connections_ended_total{reason="bad_request",direction="outbound",path="tunnel"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
}
