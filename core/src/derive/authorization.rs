//! AuthorizationPolicy → what ztunnel enforces of it.
//!
//! The semantics are Istio's. HTTP fields fail closed: an ALLOW rule with HTTP fields never matches; a DENY
//! rule loses them, and so denies more than was written, up to everything. What cannot be read or enforced
//! refuses everything in its scope: see docs/decisions/277.
//!
//! Entry points: [`derive()`] and [`closed`].

use std::collections::BTreeSet;
use std::fmt::Display;

use super::condition::Condition;
use super::grammar;
use super::object::{AuthorizationPolicy, ObjectKey, Operation, PolicyAction, PolicyRule, Source, When};
use super::settings::Settings;
use crate::model::{
    Action, Authorization, Clause, IpBlock, Match, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
    TrustDomain,
};

const DRY_RUN: &str = "istio.io/dry-run";

/// Why a policy is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    field: String,
    message: String,
}

impl Problem {
    pub(super) fn into_condition(self, object: ObjectKey) -> Condition {
        Condition { object, field: Some(self.field), accepted: false, message: self.message }
    }
}

/// What ztunnel enforces of a policy, and its conditions.
pub(super) struct Enforced {
    /// `None` if ztunnel enforces nothing of it.
    pub(super) policy: Option<Authorization>,
    /// The field because of which ztunnel enforces nothing, or refuses everything, and the message about it.
    elsewhere: Option<(&'static str, String)>,
    /// The HTTP fields that were found.
    http: Vec<String>,
    action: PolicyAction,
}

impl Enforced {
    /// The conditions of the policy.
    pub(super) fn conditions(&self, object: &ObjectKey) -> Vec<Condition> {
        if let Some((field, message)) = &self.elsewhere {
            return vec![Condition {
                object: object.clone(),
                field: Some((*field).to_owned()),
                accepted: false,
                message: message.clone(),
            }];
        }
        if self.http.is_empty() {
            return vec![Condition::accepted(object.clone())];
        }
        let message = match self.action {
            PolicyAction::Deny => "is an HTTP field: ztunnel denies without looking at it, which denies more",
            _ => "is an HTTP field: for ztunnel this rule never allows anything",
        };
        let condition = |field: &String| Condition {
            object: object.clone(),
            field: Some(field.clone()),
            accepted: true,
            message: message.to_owned(),
        };
        self.http.iter().map(condition).collect()
    }
}

/// Whether the policy is for waypoints and services, not for workloads.
pub(super) fn is_for_waypoints(policy: &AuthorizationPolicy) -> bool {
    !policy.target_refs.is_empty()
}

/// Whether the workloads that the policy selects name it.
pub(super) fn is_named_by_workloads(policy: &AuthorizationPolicy) -> bool {
    !policy.selector.is_empty() && elsewhere(policy).is_none()
}

pub(super) fn derive(policy: &AuthorizationPolicy, settings: &Settings) -> Result<Enforced, Problem> {
    if let PolicyAction::Custom | PolicyAction::Unreadable = policy.action {
        return Ok(Enforced {
            policy: closed(policy, settings),
            elsewhere: elsewhere(policy).or_else(|| unenforced(policy)),
            http: Vec::new(),
            action: policy.action,
        });
    }
    let mut http = Http { found: BTreeSet::new() };
    let mut rules = Vec::new();
    for (index, rule) in policy.rules.iter().enumerate() {
        rules.extend(self::rule(&format!("spec.rules[{index}]"), rule, policy, settings, &mut http)?);
    }
    let elsewhere = elsewhere(policy);
    let action = if policy.action == PolicyAction::Deny { Action::Deny } else { Action::Allow };
    let authorization = authorization(policy, settings, action, rules);
    Ok(Enforced {
        policy: elsewhere.is_none().then_some(authorization),
        elsewhere,
        http: http.found.into_iter().collect(),
        action: policy.action,
    })
}

/// The policy that refuses every connection to what the object selects; `None` if that is for waypoints.
pub(super) fn closed(policy: &AuthorizationPolicy, settings: &Settings) -> Option<Authorization> {
    let everything = vec![Rule::default()];
    elsewhere(policy).is_none().then(|| authorization(policy, settings, Action::Deny, everything))
}

fn authorization(
    policy: &AuthorizationPolicy,
    settings: &Settings,
    action: Action,
    rules: Vec<Rule>,
) -> Authorization {
    let metadata = &policy.metadata;
    let scope = if !policy.selector.is_empty() {
        Scope::WorkloadSelector
    } else if metadata.namespace == settings.root_namespace {
        Scope::Global
    } else {
        Scope::Namespace
    };
    Authorization {
        key: PolicyKey { namespace: metadata.namespace.as_str().into(), name: metadata.name.as_str().into() },
        scope,
        action,
        rules,
        dry_run: metadata.annotations.get(DRY_RUN).is_some_and(|value| is_true(value)),
    }
}

/// A boolean as Go's `strconv.ParseBool` reads it. Other text was rejected when the object was parsed.
fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// Why ztunnel does not enforce the policy at all: the field, and the message.
fn elsewhere(policy: &AuthorizationPolicy) -> Option<(&'static str, String)> {
    if !policy.target_refs.is_empty() {
        return Some((
            "spec.targetRefs",
            "is for waypoints: ztunnel does not enforce this policy".to_owned(),
        ));
    }
    let audit = || ("spec.action", "AUDIT is not supported: this policy is not enforced".to_owned());
    (policy.action == PolicyAction::Audit).then(audit)
}

/// Why the policy refuses everything that it selects: the field, and the message.
fn unenforced(policy: &AuthorizationPolicy) -> Option<(&'static str, String)> {
    let refused = "all connections to what the policy selects are refused";
    match policy.action {
        PolicyAction::Custom => {
            Some(("spec.action", format!("CUSTOM: no proxy asks the provider yet: {refused}")))
        }
        PolicyAction::Unreadable => Some(("spec", format!("has mistakes: {refused}"))),
        PolicyAction::Allow | PolicyAction::Deny | PolicyAction::Audit => None,
    }
}

/// The HTTP fields found so far.
struct Http {
    found: BTreeSet<String>,
}

impl Http {
    /// Notes those of the fields that are in use, and returns whether any is.
    fn note(&mut self, path: &str, fields: &[(&str, bool)]) -> bool {
        let used: Vec<_> = fields.iter().filter(|(_, used)| *used).collect();
        self.found.extend(used.iter().map(|(name, _)| format!("{path}.{name}")));
        !used.is_empty()
    }
}

/// A rule as ztunnel enforces it; `None` if it can never match.
fn rule(
    path: &str,
    rule: &PolicyRule,
    policy: &AuthorizationPolicy,
    settings: &Settings,
    http: &mut Http,
) -> Result<Option<Rule>, Problem> {
    let mut clauses = Vec::new();
    let mut has_http = false;

    let mut operations = Vec::new();
    for (index, operation) in rule.to.iter().enumerate() {
        let path = format!("{path}.to[{index}].operation");
        has_http |= http.note(&path, &http_operation(operation));
        operations.push(operation_match(&path, operation)?);
    }
    clauses.push(operations);

    let mut sources = Vec::new();
    for (index, source) in rule.from.iter().enumerate() {
        let path = format!("{path}.from[{index}].source");
        has_http |= http.note(&path, &http_source(source));
        sources.push(source_match(&path, source, &policy.metadata.namespace, settings)?);
    }
    clauses.push(sources);

    for (index, when) in rule.when.iter().enumerate() {
        let path = format!("{path}.when[{index}]");
        let (m, is_http) = when_match(&path, when, &policy.metadata.namespace, settings)?;
        has_http |= http.note(&path, &[("key", is_http)]);
        clauses.push(vec![m]);
    }

    if has_http && policy.action != PolicyAction::Deny {
        return Ok(None);
    }
    // A match that lost all its conditions matches everything, and so does its clause.
    clauses.retain(|matches| !matches.is_empty() && !matches.iter().any(Match::is_empty));
    Ok(Some(Rule { clauses: clauses.into_iter().map(|matches| Clause { matches }).collect() }))
}

fn http_operation(o: &Operation) -> [(&'static str, bool); 6] {
    [
        ("hosts", !o.hosts.is_empty()),
        ("notHosts", !o.not_hosts.is_empty()),
        ("methods", !o.methods.is_empty()),
        ("notMethods", !o.not_methods.is_empty()),
        ("paths", !o.paths.is_empty()),
        ("notPaths", !o.not_paths.is_empty()),
    ]
}

fn operation_match(path: &str, o: &Operation) -> Result<Match, Problem> {
    if *o == Operation::default() {
        return Err(problem(path, "names no condition"));
    }
    Ok(Match {
        destination_ports: o.ports.clone(),
        not_destination_ports: o.not_ports.clone(),
        ..Match::default()
    })
}

fn http_source(s: &Source) -> [(&'static str, bool); 4] {
    [
        ("requestPrincipals", !s.request_principals.is_empty()),
        ("notRequestPrincipals", !s.not_request_principals.is_empty()),
        ("remoteIpBlocks", !s.remote_ip_blocks.is_empty()),
        ("notRemoteIpBlocks", !s.not_remote_ip_blocks.is_empty()),
    ]
}

fn source_match(path: &str, s: &Source, namespace: &str, settings: &Settings) -> Result<Match, Problem> {
    if *s == Source::default() {
        return Err(problem(path, "names no condition"));
    }
    let at = |field: &str| format!("{path}.{field}");
    Ok(Match {
        namespaces: namespaces(&at("namespaces"), &s.namespaces)?,
        not_namespaces: namespaces(&at("notNamespaces"), &s.not_namespaces)?,
        service_accounts: accounts(&at("serviceAccounts"), &s.service_accounts, namespace)?,
        not_service_accounts: accounts(&at("notServiceAccounts"), &s.not_service_accounts, namespace)?,
        principals: principals(&at("principals"), &s.principals, settings)?,
        not_principals: principals(&at("notPrincipals"), &s.not_principals, settings)?,
        source_ips: s.ip_blocks.clone(),
        not_source_ips: s.not_ip_blocks.clone(),
        ..Match::default()
    })
}

/// A condition's match, and whether its attribute is HTTP's (then the match is empty).
fn when_match(
    path: &str,
    when: &When,
    namespace: &str,
    settings: &Settings,
) -> Result<(Match, bool), Problem> {
    if when.values.is_empty() && when.not_values.is_empty() {
        return Err(problem(path, "names neither values nor notValues"));
    }
    let (values, not_values) = (format!("{path}.values"), format!("{path}.notValues"));
    let mut m = Match::default();
    match when.key.as_str() {
        "source.namespace" => {
            m.namespaces = namespaces(&values, &when.values)?;
            m.not_namespaces = namespaces(&not_values, &when.not_values)?;
        }
        "source.principal" => {
            m.principals = principals(&values, &when.values, settings)?;
            m.not_principals = principals(&not_values, &when.not_values, settings)?;
        }
        "source.serviceAccount" => {
            m.service_accounts = accounts(&values, &when.values, namespace)?;
            m.not_service_accounts = accounts(&not_values, &when.not_values, namespace)?;
        }
        "source.ip" => {
            m.source_ips = blocks(&values, &when.values)?;
            m.not_source_ips = blocks(&not_values, &when.not_values)?;
        }
        "destination.ip" => {
            m.destination_ips = blocks(&values, &when.values)?;
            m.not_destination_ips = blocks(&not_values, &when.not_values)?;
        }
        "destination.port" => {
            m.destination_ports = ports(&values, &when.values)?;
            m.not_destination_ports = ports(&not_values, &when.not_values)?;
        }
        key if is_http_attribute(key) => return Ok((m, true)),
        key => return Err(problem(format!("{path}.key"), format!("{key:?} is not an attribute"))),
    }
    Ok((m, false))
}

/// Whether the attribute is one of Istio's that only HTTP requests have.
fn is_http_attribute(key: &str) -> bool {
    const NAMED: [&str; 6] = [
        "remote.ip",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "connection.sni",
        "request.headers",
    ];
    const KEYED: [&str; 3] = ["request.headers[", "request.auth.claims[", "experimental."];
    NAMED.contains(&key) || KEYED.iter().any(|prefix| key.starts_with(prefix))
}

/// `*` is presence, `*x` a suffix, `x*` a prefix, anything else exact.
fn texts(path: &str, values: &[String]) -> Result<Vec<StringMatch>, Problem> {
    parse(path, values, |value| {
        grammar::one_wildcard(value)?;
        let text = |text: &str| text.into();
        Ok::<_, String>(if value == "*" {
            StringMatch::Presence
        } else if let Some(suffix) = value.strip_prefix('*') {
            StringMatch::Suffix(text(suffix))
        } else if let Some(prefix) = value.strip_suffix('*') {
            StringMatch::Prefix(text(prefix))
        } else {
            StringMatch::Exact(text(value))
        })
    })
}

fn namespaces(path: &str, values: &[String]) -> Result<Vec<StringMatch>, Problem> {
    parse(path, values, grammar::namespace)?;
    texts(path, values)
}

/// The principals, in each of the mesh's trust domains that they mean.
fn principals(path: &str, values: &[String], settings: &Settings) -> Result<Vec<StringMatch>, Problem> {
    let everywhere: Vec<String> = values.iter().flat_map(|value| in_all_domains(value, settings)).collect();
    // Mistakes are reported about the values as written.
    parse(path, values, grammar::principal)?;
    let written = texts(path, values)?;
    if everywhere == values { Ok(written) } else { texts(path, &everywhere) }
}

/// As in Istio: if the trust domain of a principal is one of the mesh's, or `cluster.local`, which means all
/// of them, the principal becomes one in each of the mesh's trust domains. One that begins with `*` is
/// kept for the domains it matches and replaced for the others. A principal without a trust domain, or with a
/// foreign one, is unchanged.
fn in_all_domains(value: &str, settings: &Settings) -> Vec<String> {
    let unchanged = || vec![value.to_owned()];
    let Some((domain, path)) = value.split_once('/').filter(|(domain, _)| *domain != "*") else {
        return unchanged();
    };
    let matches = |ours: &TrustDomain| match domain.strip_prefix('*') {
        Some(suffix) => ours.as_str().ends_with(suffix),
        None => ours.as_str() == domain,
    };
    let ours = || std::iter::once(&settings.trust_domain).chain(settings.trust_domain_aliases.iter());
    if domain != TrustDomain::default().as_str() && !ours().any(matches) {
        return unchanged();
    }
    let mut all = Vec::new();
    for our in ours() {
        let meant = if matches(our) { value.to_owned() } else { format!("{our}/{path}") };
        if !all.contains(&meant) {
            all.push(meant);
        }
    }
    all
}

/// `namespace/account`, or an account of the policy's own namespace.
fn accounts(path: &str, values: &[String], namespace: &str) -> Result<Vec<ServiceAccountMatch>, Problem> {
    parse(path, values, |value| {
        grammar::service_account(value)?;
        let (namespace, account) = value.split_once('/').unwrap_or((namespace, value));
        Ok(ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() })
    })
}

fn blocks(path: &str, values: &[String]) -> Result<Vec<IpBlock>, Problem> {
    parse(path, values, |value| {
        value.parse().map_err(|_| format!("{value:?} is neither an address nor a block like 10.0.0.0/8"))
    })
}

fn ports(path: &str, values: &[String]) -> Result<Vec<u16>, Problem> {
    parse(path, values, |value| match value.parse() {
        Ok(0) | Err(_) => Err(format!("{value:?} is not a port")),
        Ok(port) => Ok(port),
    })
}

fn parse<T>(
    path: &str,
    values: &[String],
    one: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, Problem> {
    let parsed = values.iter().enumerate().map(|(index, value)| {
        let at = || format!("{path}[{index}]");
        if value.is_empty() {
            return Err(problem(at(), "is empty"));
        }
        one(value).map_err(|message| problem(at(), message))
    });
    parsed.collect()
}

fn problem(field: impl Into<String>, message: impl Display) -> Problem {
    Problem { field: field.into(), message: message.to_string() }
}
