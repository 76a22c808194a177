use ambit_daemon_kit::config::parse;

use super::{Config, Overrides};

const GOOD: &str = "\
workload: Kubernetes//Pod/shop/waypoint
service: shop/waypoint.shop.svc.cluster.local
bootstrap: /etc/ambit/bootstrap.yaml
";

fn complete(text: &str) -> Result<Config, (String, String)> {
    parse::<Config>(text).and_then(|config| config.complete(Overrides::default()))
}

#[test]
fn defaults_are_filled_in() {
    let config = complete(GOOD).expect("a configuration");
    assert_eq!(config.listen.port(), 15008);
    assert_eq!(config.drain_timeout().as_secs(), 10);
    assert!(config.workers() >= 1);
}

#[test]
fn mistakes_name_their_field() {
    for (name, text, field) in [
        ("no workload", "service: a/b\nbootstrap: /b\n".to_owned(), "workload"),
        ("no service", "workload: x\nservice: b\nbootstrap: /b\n".to_owned(), "service"),
        ("no controller", "workload: x\nservice: a/b\n".to_owned(), "bootstrap"),
        ("no workers", format!("{GOOD}workers: 0\n"), "workers"),
        (
            "a connect timeout of nothing",
            format!("{GOOD}connect_timeout_seconds: 0\n"),
            "connect_timeout_seconds",
        ),
        ("a drain without end", format!("{GOOD}drain_timeout_seconds: 100000\n"), "drain_timeout_seconds"),
    ] {
        let mistake = complete(&text).expect_err(name);
        assert_eq!(mistake.0, field, "{name}: {}", mistake.1);
    }
}

#[test]
fn the_command_line_overrides_the_file() {
    let overrides = Overrides {
        workload: Some("Kubernetes//Pod/shop/other".to_owned()),
        node: Some("node-b".to_owned()),
        address: Some([10, 0, 0, 7].into()),
    };
    let config =
        parse::<Config>(GOOD).and_then(|config| config.complete(overrides)).expect("a configuration");
    assert_eq!(config.workload, "Kubernetes//Pod/shop/other");
    assert_eq!(config.node, "node-b");
    assert_eq!(config.address, Some([10, 0, 0, 7].into()));
}
