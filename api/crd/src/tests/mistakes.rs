//! Mistakes, by field.

use super::rejected;

/// One policy with `spec` in it.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: \
         shop}}\nspec: {spec}"
    )
}

#[test]
fn mistakes_in_authorization_policies() {
    let rows = [
        (
            "bad CIDR",
            "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/8, 10.0.0.0/33]}}]}]}",
            "spec.rules[0].from[0].source.ipBlocks[1]: \"10.0.0.0/33\" is neither an IP address nor a CIDR \
             block",
        ),
        ("unknown action", "{action: ALOW}", "spec.action: \"ALOW\" is none of ALLOW, DENY, AUDIT, CUSTOM"),
        (
            "unknown field",
            "{rules: [{from: [{source: {notIpBlock: [10.0.0.1]}}]}]}",
            "spec.rules[0].from[0].source.notIpBlock: unknown field `notIpBlock`",
        ),
        ("unknown field on top", "{rule: []}", "spec.rule: unknown field `rule`"),
        (
            "port out of range",
            "{rules: [{to: [{operation: {ports: ['80', '65536']}}]}]}",
            "spec.rules[0].to[0].operation.ports[1]: \"65536\" is not a port",
        ),
        (
            "port as a number",
            "{rules: [{to: [{operation: {ports: [80]}}]}]}",
            "spec.rules[0].to[0].operation.ports[0]: invalid type: integer `80`, expected a string",
        ),
        ("empty from", "{rules: [{from: []}]}", "spec.rules[0].from: is empty"),
        ("empty to", "{rules: [{to: []}]}", "spec.rules[0].to: is empty"),
        ("no source", "{rules: [{from: [{}]}]}", "spec.rules[0].from[0]: missing field `source`"),
        (
            "empty source",
            "{rules: [{from: [{source: {}}]}]}",
            "spec.rules[0].from[0].source: has no condition",
        ),
        (
            "empty principal",
            "{rules: [{from: [{source: {principals: ['']}}]}]}",
            "spec.rules[0].from[0].source.principals[0]: is empty",
        ),
        ("null rule", "{rules: [null]}", "spec.rules[0]: "),
        ("deny without rules", "{action: DENY}", "spec.rules: DENY without rules never denies"),
        ("deny with no rules", "{action: DENY, rules: []}", "spec.rules: DENY without rules never denies"),
        ("provider", "{action: DENY, provider: {name: x}, rules: [{}]}", "spec.provider: "),
        (
            "selector and target",
            "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}]}",
            "spec: only one of selector, targetRef and targetRefs",
        ),
        (
            "target elsewhere",
            "{targetRef: {kind: Service, name: a, namespace: other}}",
            "spec.targetRef.namespace: a policy is attached within its own namespace",
        ),
        (
            "wildcard selector",
            "{selector: {matchLabels: {app: '*'}}}",
            "spec.selector.matchLabels[\"app\"]: wildcards",
        ),
        (
            "account and namespace",
            "{rules: [{from: [{source: {serviceAccounts: [a/b], namespaces: [a]}}]}]}",
            "spec.rules[0].from[0].source: service accounts cannot be combined",
        ),
        (
            "account of too many parts",
            "{rules: [{from: [{source: {notServiceAccounts: [a/b/c]}}]}]}",
            "spec.rules[0].from[0].source.notServiceAccounts[0]: \"a/b/c\" is not",
        ),
        (
            "account with a wildcard",
            "{rules: [{from: [{source: {serviceAccounts: ['shop/*']}}]}]}",
            "spec.rules[0].from[0].source.serviceAccounts[0]: \"shop/*\" is not",
        ),
        ("when nothing", "{rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0]: needs values"),
        (
            "when of an unknown attribute",
            "{rules: [{when: [{key: source.ipp, values: [a]}]}]}",
            "spec.rules[0].when[0].key: \"source.ipp\" is not an attribute",
        ),
        (
            "when of a header without name",
            "{rules: [{when: [{key: 'request.headers[]', values: [a]}]}]}",
            "spec.rules[0].when[0].key: \"request.headers[]\" needs a name",
        ),
        (
            "when with a bad address",
            "{rules: [{when: [{key: source.ip, values: [1.2.3]}]}]}",
            "spec.rules[0].when[0].values[0]: \"1.2.3\" is neither",
        ),
        (
            "when with a bad port",
            "{rules: [{when: [{key: destination.port, notValues: [http]}]}]}",
            "spec.rules[0].when[0].notValues[0]: \"http\" is not a port",
        ),
    ];
    for (name, spec, expected) in rows {
        let (object, mistakes) = rejected(&policy(spec));
        assert_eq!(object.as_deref(), Some("AuthorizationPolicy shop/p"), "{name}");
        assert!(mistakes.len() == 1 && mistakes[0].starts_with(expected), "{name}: {mistakes:?}");
    }
}

#[test]
fn mistakes_in_other_kinds() {
    let rows = [
        (
            "mode",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {mtls: \
             {mode: BLAH}}",
            "PeerAuthentication default/a",
            "spec.mtls.mode: \"BLAH\" is none of",
        ),
        (
            "port without selector",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: \
             {portLevelMtls: {'80': {mode: STRICT}}}",
            "PeerAuthentication default/a",
            "spec.portLevelMtls: needs a selector",
        ),
        (
            "port level port",
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: \
             {selector: {matchLabels: {a: b}}, portLevelMtls: {'0': {mode: STRICT}}}",
            "PeerAuthentication default/a",
            "spec.portLevelMtls[0]: \"0\" is not a port",
        ),
        (
            "entry without address",
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec: {}",
            "WorkloadEntry default/a",
            "spec.address: missing",
        ),
        (
            "entry without spec",
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}",
            "WorkloadEntry default/a",
            "missing field `spec`",
        ),
        (
            "entry's port",
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec: {address: \
             1.1.1.1, ports: {http: 99999}}",
            "WorkloadEntry default/a",
            "spec.ports.http: 99999 is not a port",
        ),
        (
            "pod's address",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\nspec: {containers: []}\nstatus: \
             {podIPs: [{ip: 10.0.0}]}",
            "Pod b/a",
            "status.podIPs[0].ip: \"10.0.0\" is not an IP address",
        ),
        (
            "pod's port",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, ports: \
             [{containerPort: 70000}]}]}",
            "Pod default/a",
            "spec.containers[0].ports[0].containerPort: 70000 is not a port",
        ),
        (
            "pod without spec",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}",
            "Pod default/a",
            "spec: missing",
        ),
        (
            "label that is no text",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {version: 1}}",
            "Namespace a",
            "metadata.labels.version: invalid type: integer `1`, expected a string",
        ),
        (
            "service account that would forge an identity",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [], serviceAccountName: \
             a/sa/b}",
            "Pod default/a",
            "spec.serviceAccountName: \"a/sa/b\" is not a name",
        ),
        (
            "namespace that is no label",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a.b}\nspec: {containers: []}",
            "Pod a.b/a",
            "metadata.namespace: \"a.b\" is not a DNS label",
        ),
        (
            "service's target port",
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80, targetPort: \
             70000}]}",
            "Service default/a",
            "spec.ports[0].targetPort: 70000 is not a port",
        ),
        (
            "version",
            "apiVersion: security.istio.io/v9\nkind: AuthorizationPolicy\nmetadata: {name: a}",
            "AuthorizationPolicy default/a",
            "apiVersion: \"security.istio.io/v9\" is not a version",
        ),
    ];
    for (name, text, object, expected) in rows {
        let (found, mistakes) = rejected(text);
        assert_eq!(found.as_deref(), Some(object), "{name}");
        assert!(mistakes.len() == 1 && mistakes[0].starts_with(expected), "{name}: {mistakes:?}");
    }
}

#[test]
fn mistakes_in_documents_that_are_no_object() {
    let rows = [
        ("no kind", "apiVersion: v1\nmetadata: {name: a}", "kind: missing"),
        ("no version", "kind: Pod\nmetadata: {name: a}", "apiVersion: missing"),
        ("no metadata", "apiVersion: v1\nkind: Namespace", "metadata.name: missing"),
        ("no name", "apiVersion: v1\nkind: Service\nmetadata: {}\nspec: {}", "metadata.name: missing"),
        (
            "a policy misspelt",
            "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\nmetadata: {name: a}",
            "kind: \"AuthorisationPolicy\" is not a kind of security.istio.io/v1",
        ),
        ("text", "hello", "an object is a mapping"),
        ("a sequence", "- a\n- b", "an object is a mapping"),
    ];
    for (name, text, expected) in rows {
        let (object, mistakes) = rejected(text);
        assert_eq!(object, None, "{name}");
        assert!(mistakes[0].starts_with(expected), "{name}: {mistakes:?}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let (_, mistakes) = rejected(&policy(
        "{action: NO, selector: {matchLabels: {a: '*'}}, rules: [{from: [{source: {ipBlocks: [x, y]}}]}]}",
    ));
    assert_eq!(mistakes.len(), 4, "{mistakes:?}");
}
