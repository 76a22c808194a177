//! The kinds of routes: [`http`], [`grpc`], [`tls`] and [`tcp`].
//!
//! A mistake in a rule is part of that rule (`RuleMistake`), so that the others stay in force and the status
//! says what became of it, as Gateway API wants. Mistakes outside of rules reject the object.

mod filter;
mod matching;
mod notes;
mod target;
mod value;

use ambit_core::derive::{BackendRef, ParentRef, RouteFilter, RouteObject, RouteRule, RuleEffect};
use ambit_core::route::{Filter, Match, PathMatch, PathRewrite, RouteKind, ServerNameMatch};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::Mistake;
use crate::field::Report;
use crate::gateway_api as written;
use crate::metadata;
use notes::Notes;
use target::target;

/// Gateway API's limit on rules.
const MAX_RULES: usize = 16;
/// And on the hostnames of a TLSRoute.
const MAX_HOSTNAMES: usize = 16;

pub(crate) fn http(route: written::HttpRoute) -> Result<RouteObject, Vec<Mistake>> {
    let default = || written::HttpRule {
        name: None,
        matches: Vec::new(),
        filters: Vec::new(),
        backend_refs: Vec::new(),
        timeouts: written::Timeouts::default(),
        retry: None,
        session_persistence: None,
    };
    convert(RouteKind::Http, route.metadata, route.spec, default, |rule, at| {
        let mut notes = Notes::at(at);
        notes.unsupported("sessionPersistence", rule.session_persistence.is_some());
        let mut matches = matching::http(&mut notes, &rule.matches);
        if rule.matches.is_empty() {
            matches.push(Match::any());
        }
        let filters = filter::filters(&mut notes, rule.filters);
        check_prefixes(&mut notes, &matches, &filters);
        let timeouts = value::timeouts(&mut notes, &rule.timeouts);
        let retry = rule.retry.map(|retry| value::retry(&mut notes, &retry));
        let backends = backends(&mut notes, rule.backend_refs);
        let (name, mistakes) = (rule.name, notes.mistakes);
        RouteRule { name, matches, filters, backends, timeouts, retry, mistakes }
    })
}

pub(crate) fn grpc(route: written::GrpcRoute) -> Result<RouteObject, Vec<Mistake>> {
    let default = || written::GrpcRule {
        name: None,
        matches: Vec::new(),
        filters: Vec::new(),
        backend_refs: Vec::new(),
        session_persistence: None,
    };
    convert(RouteKind::Grpc, route.metadata, route.spec, default, |rule, at| {
        let mut notes = Notes::at(at);
        notes.unsupported("sessionPersistence", rule.session_persistence.is_some());
        let mut matches = matching::grpc(&mut notes, &rule.matches);
        if rule.matches.is_empty() {
            matches.push(Match::any());
        }
        for (index, filter) in rule.filters.iter().enumerate() {
            let known = ["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "ExtensionRef"];
            if !known.contains(&filter.kind.as_str()) {
                let message = format!("{:?} is not a filter of a GRPCRoute", filter.kind);
                notes.add(&format!("filters[{index}].type"), message, RuleEffect::Fails);
            }
        }
        let filters = filter::filters(&mut notes, rule.filters);
        let backends = backends(&mut notes, rule.backend_refs);
        let (name, mistakes) = (rule.name, notes.mistakes);
        RouteRule { name, matches, filters, backends, mistakes, ..RouteRule::default() }
    })
}

pub(crate) fn tls(mut route: written::TlsRoute) -> Result<RouteObject, Vec<Mistake>> {
    let mut report = Report::default();
    let mut server_names = Vec::new();
    for (index, hostname) in std::mem::take(&mut route.spec.hostnames).into_iter().enumerate() {
        match ServerNameMatch::parse(&hostname) {
            Some(name) => server_names.push(name),
            None => report.add(
                format_args!("spec.hostnames[{index}]"),
                format_args!("{hostname:?} is not a server name: a DNS name, which may begin with *."),
            ),
        }
    }
    report.at_most("spec.hostnames", server_names.len(), MAX_HOSTNAMES);
    let object = convert(
        RouteKind::Tls,
        route.metadata,
        route.spec,
        written::ConnectionRule::default,
        connection_rule,
    );
    match (object, report.finish(())) {
        (Ok(object), Ok(())) => Ok(RouteObject { server_names, ..object }),
        (object, names) => Err(object.err().into_iter().chain(names.err()).flatten().collect()),
    }
}

pub(crate) fn tcp(route: written::TcpRoute) -> Result<RouteObject, Vec<Mistake>> {
    if !route.spec.hostnames.is_empty() {
        let message = "is not a field of a TCPRoute".to_owned();
        return Err(vec![Mistake { field: "spec.hostnames".to_owned(), message }]);
    }
    convert(RouteKind::Tcp, route.metadata, route.spec, written::ConnectionRule::default, connection_rule)
}

fn connection_rule(rule: written::ConnectionRule, at: &str) -> RouteRule {
    let mut notes = Notes::at(at);
    for (index, backend) in rule.backend_refs.iter().enumerate() {
        notes.unsupported(&format!("backendRefs[{index}].filters"), !backend.filters.is_empty());
    }
    let backends = backends(&mut notes, rule.backend_refs);
    let (name, mistakes) = (rule.name, notes.mistakes);
    RouteRule { name, matches: vec![Match::any()], backends, mistakes, ..RouteRule::default() }
}

fn convert<R>(
    kind: RouteKind,
    meta: ObjectMeta,
    spec: written::RouteSpec<R>,
    default: impl Fn() -> R,
    rule: impl Fn(R, &str) -> RouteRule,
) -> Result<RouteObject, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_namespace(&mut report, meta);
    let parents = spec.parent_refs.into_iter().enumerate();
    let parents = parents.map(|(index, parent)| self::parent(&mut report, index, parent)).collect();
    let rules = match spec.rules {
        Some(rules) if !rules.is_empty() => rules,
        _ => vec![default()],
    };
    report.at_most("spec.rules", rules.len(), MAX_RULES);
    let rules = rules.into_iter().enumerate();
    let rules = rules.map(|(index, it)| rule(it, &format!("spec.rules[{index}]"))).collect();
    let hostnames = spec.hostnames;
    report.finish(RouteObject { kind, metadata, parents, hostnames, server_names: Vec::new(), rules })
}

fn parent(report: &mut Report, index: usize, parent: written::ParentReference) -> ParentRef {
    let field = format!("spec.parentRefs[{index}]");
    let written::ParentReference { group, kind, namespace, name, section_name, port } = parent;
    if name.is_empty() {
        report.add(format_args!("{field}.name"), "missing");
    }
    ParentRef {
        group: group.unwrap_or_else(|| "gateway.networking.k8s.io".to_owned()),
        kind: kind.unwrap_or_else(|| "Gateway".to_owned()),
        namespace,
        name,
        section: section_name,
        port: port.and_then(|port| report.port(format_args!("{field}.port"), port)),
    }
}

fn backends(notes: &mut Notes<'_>, listed: Vec<written::BackendReference>) -> Vec<BackendRef> {
    let mut backends = Vec::with_capacity(listed.len());
    for (index, backend) in listed.into_iter().enumerate() {
        let field = format!("backendRefs[{index}]");
        let (mut request, mut response) = (Vec::new(), Vec::new());
        let path = format!("{}.{field}", notes.at);
        let mut inner = Notes::at(&path);
        for (at, filter) in filter::filters(&mut inner, backend.filters).into_iter().enumerate() {
            match filter {
                RouteFilter::Ready(Filter::RequestHeaders(change)) => request.push(change),
                RouteFilter::Ready(Filter::ResponseHeaders(change)) => response.push(change),
                RouteFilter::Ready(_) | RouteFilter::Mirror { .. } => {
                    let message = "is not supported for one backend alone: put it into the rule";
                    inner.add(&format!("filters[{at}]"), message, RuleEffect::Fails);
                }
            }
        }
        notes.mistakes.extend(inner.mistakes);
        let weight = match backend.weight.map(u32::try_from) {
            None => 1,
            Some(Ok(weight)) if weight <= 1_000_000 => weight,
            Some(_) => {
                notes.add(&format!("{field}.weight"), "is not a weight: 0 to 1000000", RuleEffect::Fails);
                0
            }
        };
        let reference = written::ObjectReference {
            group: backend.group,
            kind: backend.kind,
            namespace: backend.namespace,
            name: backend.name,
            port: backend.port,
        };
        backends.push(BackendRef {
            target: target(notes, &field, reference),
            weight,
            request_headers: request,
            response_headers: response,
        });
    }
    backends
}

/// A prefix is replaced only where a prefix matched.
fn check_prefixes(notes: &mut Notes<'_>, matches: &[Match], filters: &[RouteFilter]) {
    let replaces = |path: Option<&PathRewrite>| matches!(path, Some(PathRewrite::Prefix(_)));
    let replacing = filters.iter().any(|filter| match filter {
        RouteFilter::Ready(Filter::Redirect(redirect)) => replaces(redirect.path.as_ref()),
        RouteFilter::Ready(Filter::Rewrite(rewrite)) => replaces(rewrite.path.as_ref()),
        RouteFilter::Ready(_) | RouteFilter::Mirror { .. } => false,
    });
    if replacing && !matches.iter().all(|it| matches!(it.path, PathMatch::Prefix(_))) {
        let message = "ReplacePrefixMatch needs matches of type PathPrefix and no other";
        notes.add("filters", message, RuleEffect::Dropped);
    }
}
