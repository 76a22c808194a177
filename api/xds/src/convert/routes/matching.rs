//! What rules match on.

use ambit_core::route::{HeaderMatch, Match, PathMatch, Pattern, QueryMatch, ValueMatch};
use http::{HeaderName, Method};

use super::super::Problem;
use super::super::common::each;
use crate::proto::ambit::v1 as wire;
use wire::route_match::Path;
use wire::value_match::Value;

pub(super) fn encode_match(it: &Match) -> wire::RouteMatch {
    wire::RouteMatch {
        path: Some(match &it.path {
            PathMatch::Exact(path) => Path::Exact(path.to_string()),
            PathMatch::Prefix(path) => Path::Prefix(path.to_string()),
            PathMatch::Pattern(pattern) => Path::Pattern(pattern.as_str().to_owned()),
        }),
        method: it.method.as_ref().map(ToString::to_string),
        headers: it.headers.iter().map(|it| encode_value(it.name.as_str(), &it.value)).collect(),
        query: it.query.iter().map(|it| encode_value(&it.name, &it.value)).collect(),
    }
}

fn encode_value(name: &str, value: &ValueMatch) -> wire::ValueMatch {
    let value = match value {
        ValueMatch::Exact(text) => Value::Exact(text.to_string()),
        ValueMatch::Pattern(pattern) => Value::Pattern(pattern.as_str().to_owned()),
    };
    wire::ValueMatch { name: name.to_owned(), value: Some(value) }
}

pub(super) fn decode_match(field: &str, it: &wire::RouteMatch) -> Result<Match, Problem> {
    let path = match &it.path {
        Some(Path::Exact(path)) => PathMatch::Exact(path.as_str().into()),
        Some(Path::Prefix(path)) => PathMatch::Prefix(path.as_str().into()),
        Some(Path::Pattern(text)) => PathMatch::Pattern(pattern(&format!("{field}.pattern"), text)?),
        None => return Err(Problem::new(format!("{field}.path"), "is of no known kind")),
    };
    let method = it.method.as_deref().map(|text| {
        let method = Method::from_bytes(text.as_bytes());
        method.map_err(|_| Problem::new(format!("{field}.method"), format!("{text:?} is not a method")))
    });
    Ok(Match {
        path,
        method: method.transpose()?,
        headers: each(&format!("{field}.headers"), &it.headers, |field, it| {
            Ok(HeaderMatch {
                name: header_name(&format!("{field}.name"), &it.name)?,
                value: value(field, it)?,
            })
        })?,
        query: each(&format!("{field}.query"), &it.query, |field, it| {
            Ok(QueryMatch { name: it.name.as_str().into(), value: value(field, it)? })
        })?,
    })
}

fn value(field: &str, it: &wire::ValueMatch) -> Result<ValueMatch, Problem> {
    match &it.value {
        Some(Value::Exact(text)) => Ok(ValueMatch::Exact(text.as_str().into())),
        Some(Value::Pattern(text)) => pattern(&format!("{field}.pattern"), text).map(ValueMatch::Pattern),
        None => Err(Problem::new(format!("{field}.value"), "is of no known kind")),
    }
}

fn pattern(field: &str, text: &str) -> Result<Pattern, Problem> {
    Pattern::new(text).map_err(|error| Problem::new(field, error.to_string()))
}

pub(super) fn header_name(field: &str, text: &str) -> Result<HeaderName, Problem> {
    HeaderName::try_from(text).map_err(|_| Problem::new(field, format!("{text:?} is not a header's name")))
}
