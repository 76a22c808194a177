//! What rules match on: [`http`] and [`grpc`].

use std::collections::BTreeSet;

use ambit_core::derive::RuleEffect;
use ambit_core::route::{HeaderMatch, Match, PathMatch, Pattern, QueryMatch, ValueMatch};
use http::{HeaderName, Method};

use super::notes::Notes;
use crate::gateway_api as written;

/// The matches of an HTTPRoute's rule.
pub(super) fn http(notes: &mut Notes<'_>, listed: &[written::HttpMatch]) -> Vec<Match> {
    let listed = listed.iter().enumerate();
    let read = listed.filter_map(|(index, it)| {
        let field = format!("matches[{index}]");
        let path = path(notes, &field, it.path.as_ref());
        let method = match it.method.as_deref().map(|method| Method::from_bytes(method.as_bytes())) {
            None => Some(None),
            Some(Ok(method)) => Some(Some(method)),
            Some(Err(_)) => {
                notes.add(&format!("{field}.method"), "is not a method", RuleEffect::Dropped);
                None
            }
        };
        let headers = headers(notes, &field, &it.headers);
        let query = queries(notes, &field, &it.query_params);
        Some(Match { path: path?, method: method?, headers: headers?, query: query? })
    });
    read.collect()
}

/// The matches of a GRPCRoute's rule.
pub(super) fn grpc(notes: &mut Notes<'_>, listed: &[written::GrpcMatch]) -> Vec<Match> {
    let listed = listed.iter().enumerate();
    let read = listed.filter_map(|(index, it)| {
        let field = format!("matches[{index}]");
        let path = method(notes, &field, it.method.as_ref());
        let headers = headers(notes, &field, &it.headers);
        Some(Match { path: path?, method: None, headers: headers?, query: Vec::new() })
    });
    read.collect()
}

fn path(notes: &mut Notes<'_>, field: &str, path: Option<&written::PathMatch>) -> Option<PathMatch> {
    let Some(path) = path else { return Some(PathMatch::Prefix("/".into())) };
    let value = path.value.as_deref().unwrap_or("/");
    let kind = path.kind.as_deref().unwrap_or("PathPrefix");
    let field = format!("{field}.path");
    match kind {
        "Exact" | "PathPrefix" => {
            if let Err(message) = check_path(value) {
                notes.add(&format!("{field}.value"), message, RuleEffect::Dropped);
                return None;
            }
            Some(if kind == "Exact" {
                PathMatch::Exact(value.into())
            } else {
                PathMatch::Prefix(value.into())
            })
        }
        "RegularExpression" => pattern(notes, &field, value).map(PathMatch::Pattern),
        other => {
            notes.add(&format!("{field}.type"), format!("{other:?} is not supported"), RuleEffect::Dropped);
            None
        }
    }
}

/// As Gateway API's definition has it: what a normalised path cannot be would never match.
fn check_path(value: &str) -> Result<(), String> {
    if !value.starts_with('/') {
        return Err(format!("{value:?} does not begin with a slash"));
    }
    for bad in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if value.contains(bad) {
            return Err(format!("{value:?} contains {bad}, which no request's path does"));
        }
    }
    if value.ends_with("/..") || value.ends_with("/.") {
        return Err(format!("{value:?} ends with dots, which no request's path does"));
    }
    Ok(())
}

fn pattern(notes: &mut Notes<'_>, field: &str, value: &str) -> Option<Pattern> {
    match Pattern::new(value) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            notes.add(&format!("{field}.value"), error.to_string(), RuleEffect::Dropped);
            None
        }
    }
}

fn value(notes: &mut Notes<'_>, field: &str, it: &written::ValueMatch) -> Option<ValueMatch> {
    match it.kind.as_deref() {
        None | Some("Exact") => Some(ValueMatch::Exact(it.value.as_str().into())),
        Some("RegularExpression") => pattern(notes, field, &it.value).map(ValueMatch::Pattern),
        Some(other) => {
            notes.add(&format!("{field}.type"), format!("{other:?} is not supported"), RuleEffect::Dropped);
            None
        }
    }
}

/// Of several entries for one header the first counts.
fn headers(notes: &mut Notes<'_>, field: &str, listed: &[written::ValueMatch]) -> Option<Vec<HeaderMatch>> {
    let mut found: Vec<HeaderMatch> = Vec::new();
    for (index, it) in listed.iter().enumerate() {
        let field = format!("{field}.headers[{index}]");
        let Ok(name) = HeaderName::try_from(it.name.as_str()) else {
            notes.add(&format!("{field}.name"), "is not a header's name", RuleEffect::Dropped);
            return None;
        };
        let value = value(notes, &field, it)?;
        if found.iter().all(|known| known.name != name) {
            found.push(HeaderMatch { name, value });
        }
    }
    Some(found)
}

/// Of several entries for one parameter the first counts.
fn queries(notes: &mut Notes<'_>, field: &str, listed: &[written::ValueMatch]) -> Option<Vec<QueryMatch>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (index, it) in listed.iter().enumerate() {
        let field = format!("{field}.queryParams[{index}]");
        let value = value(notes, &field, it)?;
        if seen.insert(it.name.as_str()) {
            found.push(QueryMatch { name: it.name.as_str().into(), value });
        }
    }
    Some(found)
}

fn method(notes: &mut Notes<'_>, field: &str, it: Option<&written::MethodMatch>) -> Option<PathMatch> {
    let Some(it) = it else { return Some(PathMatch::grpc(None, None)) };
    let field = format!("{field}.method");
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (service, method) = (text(&it.service), text(&it.method));
    match it.kind.as_deref() {
        None | Some("Exact") => {
            let plain = |text: &Option<String>| !text.as_ref().is_some_and(|text| text.contains('/'));
            if !plain(&service) || !plain(&method) {
                notes.add(&field, "a name of gRPC has no slash", RuleEffect::Dropped);
                return None;
            }
            Some(PathMatch::grpc(service.as_deref(), method.as_deref()))
        }
        Some("RegularExpression") => {
            let part =
                |text: Option<String>| text.map_or_else(|| "[^/]+".to_owned(), |text| format!("(?:{text})"));
            // Each alone first: one must not reach over the slash into the other.
            for text in [&service, &method].into_iter().flatten() {
                pattern(notes, &field, text)?;
            }
            pattern(notes, &field, &format!("/{}/{}", part(service), part(method))).map(PathMatch::Pattern)
        }
        Some(other) => {
            notes.add(&format!("{field}.type"), format!("{other:?} is not supported"), RuleEffect::Dropped);
            None
        }
    }
}
