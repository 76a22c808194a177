//! Istio's kinds.

use ambit_core::derive::{LocalityText, MtlsMode, Object, PolicyAction, TargetRef};

use super::{accepted, labels};

#[test]
fn workload_entry() {
    let Object::WorkloadEntry(entry) = accepted(
        r"
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop}
spec:
  address: 192.0.2.7
  ports: {http: 8080}
  labels: {app: db}
  network: ''
  locality: eu/eu-1
  weight: 3
  serviceAccount: db
status: {whatever: [1]}
",
    ) else {
        panic!("not an entry")
    };
    assert_eq!(entry.address, Some("192.0.2.7".parse().unwrap()));
    assert_eq!(entry.ports.into_iter().collect::<Vec<_>>(), [("http".to_owned(), 8080)]);
    assert_eq!(entry.labels, labels([("app", "db")]));
    let locality = LocalityText { region: "eu".to_owned(), zone: "eu-1".to_owned(), subzone: String::new() };
    assert_eq!((entry.locality, entry.weight, entry.service_account.as_str()), (locality, Some(3), "db"));
    let named = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm}\nspec: \
                 {address: db.example}";
    assert!(matches!(accepted(named), Object::WorkloadEntry(entry) if entry.address.is_none()));
}

#[test]
fn authorization_policy() {
    let Object::AuthorizationPolicy(policy) = accepted(
        r#"
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec:
  selector: {matchLabels: {app: cart}}
  action: DENY
  rules:
  - from:
    - source: {principals: ["*/sa/web"], notNamespaces: [legacy], ipBlocks: ["10.0.0.0/8", "2001:db8::1"]}
    - source: {serviceAccounts: [shop/web, web]}
    to:
    - operation: {ports: ["80", "8080"], methods: [GET]}
    when:
    - {key: source.ip, notValues: ["192.0.2.1"]}
    - {key: "request.headers[x-id]", values: ["1"]}
  - {}
"#,
    ) else {
        panic!("not a policy")
    };
    assert_eq!((policy.action, policy.rules.len()), (PolicyAction::Deny, 2));
    assert_eq!(policy.selector, labels([("app", "cart")]));
    assert_eq!(policy.metadata.annotations, labels([("istio.io/dry-run", "true")]));
    let rule = &policy.rules[0];
    let blocks: Vec<_> = rule.from[0].ip_blocks.iter().map(|block| block.0.to_string()).collect();
    assert_eq!(blocks, ["10.0.0.0/8", "2001:db8::1/128"]);
    assert_eq!(rule.from[1].service_accounts, ["shop/web", "web"]);
    assert_eq!(rule.to[0].ports, [80, 8080]);
    assert_eq!(rule.when[1].key, "request.headers[x-id]");
    assert!(
        policy.rules[1].from.is_empty() && policy.rules[1].to.is_empty() && policy.rules[1].when.is_empty()
    );
}

#[test]
fn authorization_policies_without_rules_or_with_a_target() {
    for spec in ["", "spec:", "spec: {}", "spec: {action: ALLOW, rules: []}"] {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\n{spec}"
        );
        let Object::AuthorizationPolicy(policy) = accepted(&text) else { panic!("{spec}") };
        assert_eq!((policy.action, policy.rules.len()), (PolicyAction::Allow, 0), "{spec}");
    }
    let attached = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, \
                    namespace: shop}\nspec: {targetRefs: [{kind: Service, name: cart, namespace: shop}]}";
    let Object::AuthorizationPolicy(policy) = accepted(attached) else { panic!() };
    let target = TargetRef { group: String::new(), kind: "Service".to_owned(), name: "cart".to_owned() };
    assert_eq!(policy.target_refs, [target]);
}

#[test]
fn peer_authentication() {
    let Object::PeerAuthentication(policy) = accepted(
        r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: a, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  mtls: {mode: STRICT}
  portLevelMtls:
    8080: {mode: PERMISSIVE}
    '9090': {}
",
    ) else {
        panic!("not a policy")
    };
    assert_eq!(policy.mode, MtlsMode::Strict);
    assert_eq!(
        policy.port_modes.into_iter().collect::<Vec<_>>(),
        [(8080, MtlsMode::Permissive), (9090, MtlsMode::Unset)]
    );
}
