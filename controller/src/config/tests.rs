use ambit_daemon_kit::config::mistakes::assert_mistakes;

use super::*;

fn parse_in(text: &str, environment: &Environment) -> Result<Config, Mistake> {
    config::parse(text).and_then(|written: Written| written.check(environment))
}

fn parse(text: &str) -> Result<Config, Mistake> {
    let environment = Environment { namespace: Some("mesh".to_owned()), pod: Some("ctl-1".to_owned()) };
    parse_in(text, &environment)
}

#[test]
fn defaults() {
    let config = parse("objects: /o\nstate: /s\n").unwrap();
    assert_eq!(config.listen.to_string(), "[::]:15012");
    assert_eq!(config.metrics.to_string(), "[::]:15014");
    assert_eq!(config.admin.to_string(), "127.0.0.1:15000");
    assert_eq!(config.derive, derive::Settings::default());
    assert_eq!(config.server_name, "ambit-controller");
    assert_eq!(config.max_certificate_ttl, Duration::from_hours(24));
    assert_eq!(config.log, logs::Settings::default());
}

#[test]
fn every_field_set() {
    let config = parse(
        "{objects: o, state: s, listen: '127.0.0.1:0', metrics: '127.0.0.1:1', admin: '[::1]:2', \
         trust_domain: example.org, trust_domain_aliases: [old.example, older.example], root_namespace: \
         root, cluster: c-1, server_name: ctl.example.org, max_certificate_ttl_seconds: 10, \
         drain_timeout_seconds: 1, log: {format: json, filter: debug}}",
    )
    .unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:0");
    assert_eq!(config.derive.trust_domain.as_str(), "example.org");
    let aliases: Vec<&str> = config.derive.trust_domain_aliases.iter().map(TrustDomain::as_str).collect();
    assert_eq!(aliases, ["old.example", "older.example"]);
    assert_eq!((config.derive.root_namespace.as_str(), config.derive.cluster.as_str()), ("root", "c-1"));
    assert_eq!(config.max_certificate_ttl, Duration::from_secs(10));
    assert_eq!(config.log, logs::Settings { format: logs::Format::Json, filter: "debug".to_owned() });
}

#[test]
fn defaults_on_kubernetes() {
    let config = parse("kubernetes: {}").unwrap();
    let Source::Kubernetes(settings) = &config.source else { panic!("{:?}", config.source) };
    assert_eq!((settings.namespace.as_str(), settings.pod_name.as_str()), ("mesh", "ctl-1"));
    assert_eq!(config.server_name, "ambit-controller.mesh.svc");
    assert_eq!(config.derive.root_namespace, "mesh");
    assert_eq!(config.readiness.unwrap().to_string(), "[::]:15021");

    let config = parse(
        "{kubernetes: {namespace: own, pod_name: p, root_trust_wait_seconds: 5}, server_name: other, \
         root_namespace: root, readiness: '127.0.0.1:9'}",
    )
    .unwrap();
    let Source::Kubernetes(settings) = &config.source else { panic!("{:?}", config.source) };
    assert_eq!((settings.namespace.as_str(), settings.pod_name.as_str()), ("own", "p"));
    assert_eq!(settings.root_trust_wait, Duration::from_secs(5));
    assert_eq!((config.server_name.as_str(), config.derive.root_namespace.as_str()), ("other", "root"));
    assert_eq!(config.readiness.unwrap().to_string(), "127.0.0.1:9");

    assert_eq!(config.log.filter, "info,kube_client=off");
    let nowhere = Environment { namespace: None, pod: None };
    let (field, _) = parse_in("kubernetes: {pod_name: p}", &nowhere).unwrap_err();
    assert_eq!(field, "kubernetes.namespace");
    let (field, _) = parse_in("kubernetes: {namespace: n}", &nowhere).unwrap_err();
    assert_eq!(field, "kubernetes.pod_name");
}

#[test]
fn mistakes_name_their_field() {
    let rows = [
        ("unknown field", "objects: o\nstate: s\nlisten_on: x", "listen_on", "unknown field"),
        ("unknown nested field", "objects: o\nstate: s\nlog: {colour: red}", "log.colour", "unknown field"),
        ("missing", "state: s", "", "missing field `objects`"),
        ("no source", "listen: '[::]:1'", "", "set either"),
        ("two sources", "objects: o\nstate: s\nkubernetes: {}", "kubernetes", "not both"),
        ("half a source", "objects: o\nkubernetes: {}", "kubernetes", "not both"),
        ("no state", "objects: o", "", "missing field `state`"),
        ("unknown field", "kubernetes: {name_space: x}", "kubernetes.name_space", "unknown field"),
        ("no namespace", "kubernetes: {namespace: 'A b'}", "kubernetes.namespace", "is not a name"),
        ("empty", "objects: ''\nstate: s", "objects", "is empty"),
        ("the same folder", "objects: s\nstate: s", "state", "must not be"),
        ("address", "objects: o\nstate: s\nlisten: here", "listen", "invalid socket address"),
        (
            "lifetime",
            "objects: o\nstate: s\nmax_certificate_ttl_seconds: 0",
            "max_certificate_ttl_seconds",
            "0 is not",
        ),
        (
            "lifetime's type",
            "objects: o\nstate: s\nmax_certificate_ttl_seconds: day",
            "max_certificate_ttl_seconds",
            "invalid type",
        ),
        ("trust domain", "objects: o\nstate: s\ntrust_domain: A B", "trust_domain", "is not a trust domain"),
        (
            "trust domain alias",
            "objects: o\nstate: s\ntrust_domain_aliases: [a.b, A]",
            "trust_domain_aliases[1]",
            "is not a trust domain",
        ),
        (
            "an alias that is the trust domain",
            "objects: o\nstate: s\ntrust_domain_aliases: [cluster.local]",
            "trust_domain_aliases[0]",
            "listed twice",
        ),
        ("namespace", "objects: o\nstate: s\nroot_namespace: ''", "root_namespace", "is not a name"),
        ("log format", "objects: o\nstate: s\nlog: {format: xml}", "log.format", "unknown variant `xml`"),
        ("no YAML", "objects: o: p", "", "line 1"),
    ];
    assert_mistakes(&rows, parse);
}
