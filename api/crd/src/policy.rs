//! AuthorizationPolicy, with Istio's checks: [`convert`]. Among others, an empty list, a source without a
//! condition and a DENY policy without rules are mistakes.

use ambit_core::derive::{
    AuthorizationPolicy, Metadata, Operation, PolicyAction, PolicyRule, Source, TargetRef, When, grammar,
};
use ambit_core::model::IpBlock;

use crate::Mistake;
use crate::field::Report;
use crate::metadata;
use crate::security as written;

/// The longest list of rules, sources or operations, as in Istio.
const MAX_ITEMS: usize = 512;

/// The annotation of policies that are evaluated and reported, never enforced.
const DRY_RUN: &str = "istio.io/dry-run";

pub(crate) fn convert(policy: written::AuthorizationPolicy) -> Result<AuthorizationPolicy, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_namespace(&mut report, policy.metadata);
    let spec = policy.spec.unwrap_or_default();
    let action = action(&mut report, &spec);
    let attachments = [spec.selector.is_some(), spec.target_ref.is_some(), !spec.target_refs.is_empty()];
    if attachments.into_iter().filter(|set| *set).count() > 1 {
        report.add("spec", "only one of selector, targetRef and targetRefs may be set");
    }
    dry_run(&mut report, &metadata);
    let selector = metadata::selector(&mut report, spec.selector);
    let target_refs = target_refs(&mut report, &metadata.namespace, spec.target_ref, spec.target_refs);
    let rules = spec.rules.unwrap_or_default();
    report.at_most("spec.rules", rules.len(), MAX_ITEMS);
    let rules = rules.into_iter().enumerate();
    let rules = rules.map(|(index, rule)| self::rule(&mut report, index, rule)).collect();
    report.finish(AuthorizationPolicy { metadata, selector, target_refs, action, rules })
}

/// The annotation is a boolean as Go's `strconv.ParseBool` reads it. Other values are mistakes: a policy that
/// was meant as a dry run must not be enforced.
fn dry_run(report: &mut Report, metadata: &Metadata) {
    const KNOWN: [&str; 12] =
        ["1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"];
    if let Some(value) = metadata.annotations.get(DRY_RUN)
        && !KNOWN.contains(&value.as_str())
    {
        let field = format_args!("metadata.annotations[{DRY_RUN}]");
        report.add(field, format_args!("{value:?} is neither true nor false"));
    }
}

fn action(report: &mut Report, spec: &written::AuthorizationPolicySpec) -> PolicyAction {
    let action = match spec.action.as_deref() {
        None | Some("ALLOW") => PolicyAction::Allow,
        Some("DENY") => PolicyAction::Deny,
        Some("AUDIT") => PolicyAction::Audit,
        Some("CUSTOM") => PolicyAction::Custom,
        Some(other) => {
            report.add("spec.action", format_args!("{other:?} is none of ALLOW, DENY, AUDIT, CUSTOM"));
            PolicyAction::Allow
        }
    };
    if spec.provider.is_some() && action != PolicyAction::Custom {
        report.add("spec.provider", "only the action CUSTOM has a provider");
    }
    let empty = spec.rules.as_ref().is_none_or(Vec::is_empty);
    if action == PolicyAction::Deny && empty {
        report.add("spec.rules", "DENY without rules never denies; an empty rule, {}, denies everything");
    }
    action
}

fn target_refs(
    report: &mut Report,
    namespace: &str,
    single: Option<written::TargetReference>,
    listed: Vec<written::TargetReference>,
) -> Vec<TargetRef> {
    let single = single.into_iter().map(|target| ("spec.targetRef".to_owned(), target));
    let listed = listed.into_iter().enumerate().map(|(i, target)| (format!("spec.targetRefs[{i}]"), target));
    let mut found = Vec::new();
    for (field, target) in single.chain(listed) {
        if target.namespace.as_deref().is_some_and(|other| !other.is_empty() && other != namespace) {
            report
                .add(format_args!("{field}.namespace"), "a policy is attached within its own namespace only");
        }
        for (part, text) in [("kind", &target.kind), ("name", &target.name)] {
            if text.is_empty() {
                report.add(format_args!("{field}.{part}"), "missing");
            }
        }
        found.push(TargetRef { group: target.group, kind: target.kind, name: target.name });
    }
    found
}

fn rule(report: &mut Report, index: usize, rule: written::Rule) -> PolicyRule {
    let field = format!("spec.rules[{index}]");
    let (from, to) = (rule.from.as_deref(), rule.to.as_deref());
    for (name, empty) in
        [("from", from.is_some_and(<[_]>::is_empty)), ("to", to.is_some_and(<[_]>::is_empty))]
    {
        if empty {
            report.add(format_args!("{field}.{name}"), "is empty: leave it out to match everything");
        }
    }
    report.at_most(format_args!("{field}.from"), from.map_or(0, <[_]>::len), MAX_ITEMS);
    report.at_most(format_args!("{field}.to"), to.map_or(0, <[_]>::len), MAX_ITEMS);
    let from = rule.from.unwrap_or_default().into_iter().enumerate();
    let to = rule.to.unwrap_or_default().into_iter().enumerate();
    let when = rule.when.into_iter().enumerate();
    PolicyRule {
        from: from.map(|(i, f)| source(report, &format!("{field}.from[{i}].source"), f.source)).collect(),
        to: to.map(|(i, t)| operation(report, &format!("{field}.to[{i}].operation"), t.operation)).collect(),
        when: when.map(|(i, w)| self::when(report, &format!("{field}.when[{i}]"), w)).collect(),
    }
}

fn source(report: &mut Report, field: &str, source: written::Source) -> Source {
    let texts = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    conditions(report, field, &texts);
    let by_account = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let by_other = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if by_account && by_other.iter().any(|list| !list.is_empty()) {
        report.add(field, "service accounts cannot be combined with principals or namespaces");
    }
    for (index, (name, list)) in texts.iter().enumerate().take(8) {
        let grammar: fn(&str) -> Result<(), String> = match index {
            0 | 1 => grammar::principal,
            2 | 3 => grammar::one_wildcard,
            4 | 5 => grammar::namespace,
            _ => grammar::service_account,
        };
        check(report, &format!("{field}.{name}"), list, grammar);
    }
    Source {
        ip_blocks: blocks(report, &format!("{field}.ipBlocks"), &source.ip_blocks),
        not_ip_blocks: blocks(report, &format!("{field}.notIpBlocks"), &source.not_ip_blocks),
        remote_ip_blocks: blocks(report, &format!("{field}.remoteIpBlocks"), &source.remote_ip_blocks),
        not_remote_ip_blocks: blocks(
            report,
            &format!("{field}.notRemoteIpBlocks"),
            &source.not_remote_ip_blocks,
        ),
        principals: source.principals,
        not_principals: source.not_principals,
        request_principals: source.request_principals,
        not_request_principals: source.not_request_principals,
        namespaces: source.namespaces,
        not_namespaces: source.not_namespaces,
        service_accounts: source.service_accounts,
        not_service_accounts: source.not_service_accounts,
    }
}

/// Whether a text is well-formed, and what is wrong with it.
type Grammar = fn(&str) -> Result<(), String>;

fn operation(report: &mut Report, field: &str, operation: written::Operation) -> Operation {
    conditions(
        report,
        field,
        &[
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            ("ports", &operation.ports),
            ("notPorts", &operation.not_ports),
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
        ],
    );
    let texts: [(_, _, Grammar); 6] = [
        ("hosts", &operation.hosts, grammar::one_wildcard),
        ("notHosts", &operation.not_hosts, grammar::one_wildcard),
        ("methods", &operation.methods, grammar::one_wildcard),
        ("notMethods", &operation.not_methods, grammar::one_wildcard),
        ("paths", &operation.paths, path),
        ("notPaths", &operation.not_paths, path),
    ];
    for (name, list, grammar) in texts {
        check(report, &format!("{field}.{name}"), list, grammar);
    }
    Operation {
        ports: ports(report, &format!("{field}.ports"), &operation.ports),
        not_ports: ports(report, &format!("{field}.notPorts"), &operation.not_ports),
        hosts: operation.hosts,
        not_hosts: operation.not_hosts,
        methods: operation.methods,
        not_methods: operation.not_methods,
        paths: operation.paths,
        not_paths: operation.not_paths,
    }
}

/// Checks each value that is not empty by its grammar.
fn check(report: &mut Report, field: &str, list: &[String], grammar: fn(&str) -> Result<(), String>) {
    for (index, value) in non_empty(list) {
        if let Err(message) = grammar(value) {
            report.add(format_args!("{field}[{index}]"), message);
        }
    }
}

/// A path, as in Istio: one wildcard at an end, or a template with `{*}` and `{**}`.
fn path(value: &str) -> Result<(), String> {
    if value.contains('{') { Ok(()) } else { grammar::one_wildcard(value) }
}

/// Checks that a source or operation has a condition and no empty value.
fn conditions(report: &mut Report, field: &str, lists: &[(&str, &Vec<String>)]) {
    if lists.iter().all(|(_, list)| list.is_empty()) {
        report.add(field, "has no condition: leave it out to match everything");
    }
    for (name, list) in lists {
        no_empty_value(report, &format!("{field}.{name}"), list);
    }
}

fn no_empty_value(report: &mut Report, field: &str, list: &[String]) {
    for (index, text) in list.iter().enumerate() {
        if text.is_empty() {
            report.add(format_args!("{field}[{index}]"), "is empty");
        }
    }
}

/// The values that are not empty; empty ones are reported already.
fn non_empty(list: &[String]) -> impl Iterator<Item = (usize, &String)> {
    list.iter().enumerate().filter(|(_, text)| !text.is_empty())
}

fn blocks(report: &mut Report, field: &str, list: &[String]) -> Vec<IpBlock> {
    non_empty(list).filter_map(|(i, text)| report.block(format_args!("{field}[{i}]"), text)).collect()
}

fn ports(report: &mut Report, field: &str, list: &[String]) -> Vec<u16> {
    non_empty(list).filter_map(|(i, text)| report.port_text(format_args!("{field}[{i}]"), text)).collect()
}

fn when(report: &mut Report, field: &str, when: written::When) -> When {
    if when.values.is_empty() && when.not_values.is_empty() {
        report.add(field, "needs values or notValues");
    }
    for (name, list) in [("values", &when.values), ("notValues", &when.not_values)] {
        let field = format!("{field}.{name}");
        no_empty_value(report, &field, list);
        match when.key.as_str() {
            "source.ip" | "remote.ip" | "destination.ip" => drop(blocks(report, &field, list)),
            "destination.port" => drop(ports(report, &field, list)),
            "source.namespace" => check(report, &field, list, grammar::namespace),
            "source.principal" => check(report, &field, list, grammar::principal),
            "source.serviceAccount" => check(report, &field, list, grammar::service_account),
            _ => {}
        }
    }
    if let Err(message) = attribute(&when.key) {
        report.add(format_args!("{field}.key"), message);
    }
    When { key: when.key, values: when.values, not_values: when.not_values }
}

/// Whether the attribute is one of Istio's.
fn attribute(key: &str) -> Result<(), String> {
    let plain = [
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "destination.ip",
        "destination.port",
        "connection.sni",
    ];
    let bracketed = ["request.headers", "request.auth.claims", "experimental.envoy.filters."];
    if plain.contains(&key) {
        return Ok(());
    }
    if bracketed.iter().any(|prefix| key.starts_with(prefix)) {
        let inside = key.strip_suffix(']').and_then(|rest| rest.split_once('['));
        let named = inside.is_some_and(|(_, name)| !name.is_empty());
        return if named { Ok(()) } else { Err(format!("{key:?} needs a name in brackets")) };
    }
    Err(if key.is_empty() { "missing".to_owned() } else { format!("{key:?} is not an attribute") })
}
