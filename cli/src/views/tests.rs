use serde_json::json;

use super::*;

fn connection(source: Option<&str>) -> Value {
    json!({
        "direction": "outbound", "path": "tunnel", "mutual_tls": true,
        "source": { "address": "10.0.0.1:4000", "workload": source },
        "destination": { "address": "10.0.1.1:8080", "workload": "Kubernetes//Pod/shop/cart" },
        "service": "shop/cart.shop.svc.cluster.local", "seconds": 1.26, "bytes_from_client": 5,
            "bytes_from_server": 7,
    })
}

/// The cells of a table's rows, its head left out.
fn cells(table: &str) -> Vec<Vec<String>> {
    table.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn open_connections_of_all_or_of_one_pod() {
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
        let shown: Vec<String> =
            cells(&tables(View::Connections, &answers, pod)).iter().map(|cells| cells.join(" ")).collect();
        assert_eq!(shown, expected, "{name}");
    }
}

#[test]
fn ended_connections_have_a_reason() {
    let mut ended = connection(None);
    ended["seconds_ago"] = json!(12.0);
    ended["reason"] = json!("policy_denied");
    let shown = tables(View::Recent, &[("n1".to_owned(), json!([ended]))], None);
    let row = cells(&shown).remove(0);
    assert_eq!(row[row.len() - 3..], ["12.0", "policy_denied", "-"]);
}

#[test]
fn configuration_of_all_or_of_one_pod() {
    let dump = json!({
        "version": "0.1.0", "enforced": true, "xds": { "connected": true },
        "pods": [
            { "uid": "k//Pod/shop/web", "known": true, "identity": "spiffe://web",
                "plaintext": { "default": "open" } },
            { "uid": "k//Pod/shop/cart", "known": true, "identity": "spiffe://cart",
                "plaintext": { "default": "strict" } },
        ],
        "certificates": [{ "identity": "spiffe://web", "not_after": "2026" },
            { "identity": "spiffe://cart" }],
        "workloads": [{ "uid": "k//Pod/shop/web", "addresses": ["10.0.0.1"], "node": "n1", "in_mesh": true,
            "healthy": true }],
        "services": [{ "key": "shop/web", "addresses": ["10.9.0.1"], "ports": { "80": 8080 } }],
        "policies": [{ "key": "shop/p", "scope": "Namespace", "action": "Deny", "dry_run": false,
            "rules": ["a", "b"] }],
    });
    let shown = tables(View::Config, &[("n1".to_owned(), dump.clone())], None);
    assert!(shown.starts_with("node n1: ztunnel 0.1.0, connected, configuration in force\n"), "{shown}");
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
    assert!(has(&shown, "shop/web true spiffe://web open") && !shown.contains("spiffe://cart"), "{shown}");
}
