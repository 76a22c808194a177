use ambit_daemon_kit::config::mistakes::assert_mistakes;

use super::*;

fn parse(text: &str, node: Option<String>) -> Result<Config, Mistake> {
    config::parse(text).and_then(|written: Config| written.complete(node))
}

#[test]
fn defaults_and_the_command_line() {
    let config = parse("namespace: ambit-system\n", Some("n1".to_owned())).unwrap();
    assert_eq!((config.node.as_str(), config.cluster.as_str()), ("n1", "Kubernetes"));
    assert_eq!(config.excluded_namespaces, ["ambit-system"]);
    assert_eq!(config.daemon_set, None);
    assert_eq!(config.run_dir, Path::new("/run/ambit"));
    assert_eq!(config.metrics.to_string(), "[::]:15022");
    let config = parse("{namespace: a, node: file}", Some("flag".to_owned())).unwrap();
    assert_eq!(config.node, "flag");
}

#[test]
fn every_field_set() {
    let config = parse(
        "{node: n, cluster: c-1, namespace: mesh, daemon_set: zt, cni_service_account: plugin, \
          run_dir: /r, host_run_dir: /hr, cni_bin_dir: /b, cni_conf_dir: /c, host_cni_conf_dir: /hc, \
          plugin: /p, proc: /hp, host_root: /, bpffs: /f, instance: i, \
          excluded_namespaces: [legacy, mesh], api_server: 'https://10.0.0.1:6443', kubeconfig: /k, \
          metrics: '127.0.0.1:1', readiness: '127.0.0.1:2', admin: '127.0.0.1:3', \
          log: {format: json, filter: debug}}",
        None,
    )
    .unwrap();
    assert_eq!(config.excluded_namespaces, ["legacy", "mesh"]);
    assert_eq!(config.daemon_set.as_deref(), Some("zt"));
    assert_eq!(config.log, logs::Settings { format: logs::Format::Json, filter: "debug".to_owned() });
}

#[test]
fn mistakes_name_their_field() {
    let rows = [
        ("unknown field", "node: n\nnamespace: a\nconf: x", "conf", "unknown field"),
        ("missing", "node: n", "", "missing field `namespace`"),
        ("no node", "namespace: a", "node", "is not a name"),
        ("a path as a name", "{node: n, namespace: a, instance: ../x}", "instance", "is not a name"),
        ("a relative path", "{node: n, namespace: a, run_dir: run}", "run_dir", "absolute"),
        ("the root", "{node: n, namespace: a, bpffs: /}", "bpffs", "absolute"),
        ("an address", "{node: n, namespace: a, metrics: here}", "metrics", "invalid socket address"),
        (
            "an excluded namespace",
            "{node: n, namespace: a, excluded_namespaces: [b, '']}",
            "excluded_namespaces[1]",
            "is not a name",
        ),
        ("plain HTTP", "{node: n, namespace: a, api_server: 'http://x'}", "api_server", "https://"),
        ("a DaemonSet's name", "{node: n, namespace: a, daemon_set: ''}", "daemon_set", "is not a name"),
        ("log format", "{node: n, namespace: a, log: {format: xml}}", "log.format", "unknown variant"),
    ];
    assert_mistakes(&rows, |text| parse(text, None));
}
