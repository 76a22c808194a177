use super::*;

/// The mistake as one line.
fn parse(text: &str, node: Option<String>) -> Result<Config, String> {
    let read = config::parse(text).and_then(|written: Config| written.complete(node));
    read.map_err(|(field, message)| format!("{field}: {message}"))
}

const MINIMAL: &str = "instance: a\nnode: node0\nbootstrap: /b.yaml\nrun_dir: /run/a\nbpffs: /sys/fs/bpf/a\n";

#[test]
fn absent_fields_have_defaults() {
    let config = parse(MINIMAL, None).unwrap();
    assert_eq!(config.workers, 2);
    assert_eq!(config.admin, "127.0.0.1:15000".parse().unwrap());
    assert_eq!(config.metrics, "[::]:15020".parse().unwrap());
    assert_eq!(config.readiness, "[::]:15021".parse().unwrap());
    assert_eq!(config.certificate_ttl(), Duration::from_hours(24));
    assert_eq!(config.drain_timeout(), Duration::from_secs(10));
    assert_eq!(config.connect_timeout(), Duration::from_secs(10));
    assert_eq!(config.ejection(), Some(outlier::Settings::default()));
    assert_eq!(config.cgroup, None);
    assert_eq!(config.tunnel_memory(), None);
    assert!(config.direct.enabled);
    assert_eq!(config.direct.lease(), Duration::from_mins(1));
}

#[test]
fn flag_overrides_the_node_of_the_file() {
    let text = "instance: a\nrun_dir: /r\nbpffs: /b\n\
                controller: {address: 'a:1', server_name: a, root_file: r, token_file: t}\n";
    assert_eq!(parse(text, Some("n1".to_owned())).unwrap().node, "n1");
    assert_eq!(parse(MINIMAL, Some("n1".to_owned())).unwrap().node, "n1", "before the file's");
    assert_eq!(parse(text, None).unwrap_err(), "node: is empty");
}

#[test]
fn mistakes_name_field_and_problem() {
    let rows = [
        ("unknown field", "worker: 3", "unknown field `worker`"),
        ("not a number", "workers: many", "workers"),
        ("no worker", "workers: 0", "workers: 0 is not between 1 and 256"),
        ("address without a port", "metrics: 127.0.0.1", "metrics"),
        ("lifetime of nothing", "certificate_ttl_seconds: 0", "certificate_ttl_seconds: 0"),
        ("no time to connect", "connect_timeout_seconds: 0", "connect_timeout_seconds: 0"),
        ("endless drain", "drain_timeout_seconds: 99999", "drain_timeout_seconds: 99999"),
        ("no lease", "direct: {lease_seconds: 0}", "direct.lease_seconds: 0"),
        ("a switch that is none", "direct: {enabled: perhaps}", "enabled"),
        ("ejection, misspelt", "ejection: {percent: 3}", "unknown field `percent`"),
        ("ejection after nothing", "ejection: {consecutive_failures: 0}", "ejection.consecutive_failures: 0"),
        ("a longest ejection below the first", "ejection: {longest_seconds: 5}", "not between 10 and 86400"),
        ("more than all", "ejection: {most_percent: 101}", "ejection.most_percent: 101"),
        ("log format", "log: {format: xml}", "xml"),
        ("memory in words", "memory_limit: much", "memory_limit: \"much\" is not a number of bytes"),
        ("memory of nothing", "memory_limit: 1Mi", "memory_limit: 1048576 is not between"),
        (
            "two controllers",
            "controller: {address: 'a:1', server_name: a, root_file: r, token_file: t}",
            "controller: set either",
        ),
    ];
    for (name, line, expected) in rows {
        let message = parse(&format!("{MINIMAL}{line}\n"), None).expect_err(name);
        assert!(message.contains(expected), "{name}: {message}");
    }
    let rows = [
        ("no controller", "", "bootstrap: set either"),
        (
            "no port",
            "controller: {address: a, server_name: a, root_file: r, token_file: t}",
            "controller.address",
        ),
        ("no file", "controller: {address: 'a:1', server_name: a, root_file: r}", "token_file"),
    ];
    for (name, line, expected) in rows {
        let text = format!("instance: a\nrun_dir: /run/a\nbpffs: /sys/fs/bpf/a\n{line}\n");
        let message = parse(&text, Some("n".to_owned())).expect_err(name);
        assert!(message.contains(expected), "{name}: {message}");
    }
    let message = parse("node: a", None).expect_err("fields are missing");
    assert!(message.contains("missing field"), "{message}");
}

#[test]
fn tunnels_get_half_of_the_memory_limit() {
    let rows = [("512Mi", 256 << 20), ("1Gi", 512 << 20), ("500M", 250_000_000), ("134217728", 64 << 20)];
    for (limit, expected) in rows {
        let config = parse(&format!("{MINIMAL}memory_limit: \"{limit}\"\n"), None).expect(limit);
        assert_eq!(config.tunnel_memory(), Some(expected), "{limit}");
    }
}
