//! The routes of services.

mod filter;
mod matching;
mod target;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::model::ServiceKey;
use ambit_core::route::{
    Attached, Backend, Backends, Retry, Route, RouteKey, RouteKind, Rule, ServerNameMatch, ServiceRoutes,
    Timeouts,
};
use http::StatusCode;

use super::common::{decode_enum, decode_port, each, required};
use super::{DecodeError, Problem};
use crate::proto::ambit::v1 as wire;
use filter::{decode_change, decode_filter, encode_change, encode_filter};
use matching::{decode_match, encode_match};
use target::{decode_target, encode_target};

/// Encodes the routes of a service.
pub fn encode_routes(routes: &ServiceRoutes) -> wire::ServiceRoutes {
    let mut indices: HashMap<*const Route, u32> = HashMap::new();
    let mut encoded = Vec::new();
    let mut attachments = Vec::with_capacity(routes.attached().len());
    for attached in routes.attached() {
        // Of one object there is one route, so the same one is usually in the same place.
        let index = *indices.entry(Arc::as_ptr(&attached.route)).or_insert_with(|| {
            encoded.push(encode_route(&attached.route));
            u32::try_from(encoded.len() - 1).unwrap_or(u32::MAX)
        });
        attachments.push(wire::Attachment {
            route: index,
            port: attached.port.map(Into::into),
            consumer: attached.consumer.as_deref().map(Into::into),
        });
    }
    wire::ServiceRoutes {
        namespace: routes.service().namespace.to_string(),
        hostname: routes.service().hostname.to_string(),
        routes: encoded,
        attachments,
    }
}

/// Decodes the routes of a service. A field that is not known is a problem where it would match more
/// requests.
pub fn decode_routes(routes: &wire::ServiceRoutes) -> Result<ServiceRoutes, DecodeError> {
    decode(routes).map_err(|problem| problem.of(format!("{}/{}", routes.namespace, routes.hostname)))
}

fn decode(routes: &wire::ServiceRoutes) -> Result<ServiceRoutes, Problem> {
    let service = ServiceKey {
        namespace: required("namespace", &routes.namespace)?,
        hostname: required("hostname", &routes.hostname)?,
    };
    let decoded: Vec<Arc<Route>> =
        each("routes", &routes.routes, |field, route| decode_route(field, route).map(Arc::new))?;
    let attached = each("attachments", &routes.attachments, |field, it| {
        let route = usize::try_from(it.route).ok().and_then(|index| decoded.get(index));
        let route = route.ok_or_else(|| Problem::new(format!("{field}.route"), "names no route"))?;
        Ok(Attached {
            route: route.clone(),
            port: it.port.map(|port| decode_port(|| format!("{field}.port"), port)).transpose()?,
            consumer: it.consumer.as_deref().map(Into::into),
        })
    })?;
    Ok(ServiceRoutes::new(service, attached))
}

fn encode_route(route: &Route) -> wire::Route {
    wire::Route {
        kind: match route.key.kind {
            RouteKind::Http => wire::route::Kind::Http,
            RouteKind::Grpc => wire::route::Kind::Grpc,
            RouteKind::Tls => wire::route::Kind::Tls,
            RouteKind::Tcp => wire::route::Kind::Tcp,
        }
        .into(),
        namespace: route.key.namespace.to_string(),
        name: route.key.name.to_string(),
        created: route.created,
        server_names: route.server_names.iter().map(ToString::to_string).collect(),
        rules: route.rules.iter().map(encode_rule).collect(),
    }
}

fn decode_route(field: &str, route: &wire::Route) -> Result<Route, Problem> {
    let kind = match decode_enum(&format!("{field}.kind"), route.kind)? {
        wire::route::Kind::Http => RouteKind::Http,
        wire::route::Kind::Grpc => RouteKind::Grpc,
        wire::route::Kind::Tls => RouteKind::Tls,
        wire::route::Kind::Tcp => RouteKind::Tcp,
    };
    let namespace = required(&format!("{field}.namespace"), &route.namespace)?;
    let name = required(&format!("{field}.name"), &route.name)?;
    let server_names = each(&format!("{field}.server_names"), &route.server_names, |field, name| {
        let parsed = ServerNameMatch::parse(name);
        parsed.ok_or_else(|| Problem::new(field, format!("{name:?} is not a server name")))
    })?;
    Ok(Route {
        key: RouteKey { kind, namespace, name },
        created: route.created,
        server_names,
        rules: each(&format!("{field}.rules"), &route.rules, decode_rule)?,
    })
}

fn encode_rule(rule: &Rule) -> wire::RouteRule {
    wire::RouteRule {
        name: rule.name.as_deref().map(Into::into),
        matches: rule.matches.iter().map(encode_match).collect(),
        filters: rule.filters.iter().map(encode_filter).collect(),
        backends: rule.backends.all().iter().map(encode_backend).collect(),
        request_timeout: rule.timeouts.request.map(encode_duration),
        backend_timeout: rule.timeouts.backend_request.map(encode_duration),
        retry: rule.retry.as_ref().map(|retry| wire::RouteRetry {
            attempts: retry.attempts,
            codes: retry.codes.iter().map(|code| code.as_u16().into()).collect(),
            backoff: Some(encode_duration(retry.backoff)),
        }),
    }
}

fn decode_rule(field: &str, rule: &wire::RouteRule) -> Result<Rule, Problem> {
    let limit = |name: &str, time: Option<&prost_types::Duration>| {
        time.map(|time| decode_duration(&format!("{field}.{name}"), time)).transpose()
    };
    let timeouts = Timeouts {
        request: limit("request_timeout", rule.request_timeout.as_ref())?,
        backend_request: limit("backend_timeout", rule.backend_timeout.as_ref())?,
    };
    let backends = each(&format!("{field}.backends"), &rule.backends, decode_backend)?;
    Ok(Rule {
        name: rule.name.as_deref().map(Into::into),
        matches: each(&format!("{field}.matches"), &rule.matches, decode_match)?,
        filters: each(&format!("{field}.filters"), &rule.filters, decode_filter)?,
        backends: Backends::new(backends),
        timeouts,
        retry: rule.retry.as_ref().map(|retry| decode_retry(&format!("{field}.retry"), retry)).transpose()?,
    })
}

fn decode_retry(field: &str, retry: &wire::RouteRetry) -> Result<Retry, Problem> {
    let codes = each(&format!("{field}.codes"), &retry.codes, |field, code| {
        let status = u16::try_from(*code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        status.ok_or_else(|| Problem::new(field, format!("{code} is not a status")))
    })?;
    let backoff = retry.backoff.as_ref().map(|time| decode_duration(&format!("{field}.backoff"), time));
    Ok(Retry { attempts: retry.attempts, codes, backoff: backoff.transpose()?.unwrap_or_default() })
}

fn encode_duration(time: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default(),
    }
}

fn decode_duration(field: &str, time: &prost_types::Duration) -> Result<Duration, Problem> {
    let parts = u64::try_from(time.seconds).ok().zip(u32::try_from(time.nanos).ok());
    let parts = parts.filter(|(_, nanos)| *nanos < 1_000_000_000);
    let time = parts.map(|(seconds, nanos)| Duration::new(seconds, nanos));
    time.ok_or_else(|| Problem::new(field, "is not a duration"))
}

fn encode_backend(backend: &Backend) -> wire::RouteBackend {
    wire::RouteBackend {
        target: Some(encode_target(&backend.target)),
        weight: backend.weight,
        request_headers: backend.request_headers.iter().map(encode_change).collect(),
        response_headers: backend.response_headers.iter().map(encode_change).collect(),
    }
}

fn decode_backend(field: &str, backend: &wire::RouteBackend) -> Result<Backend, Problem> {
    Ok(Backend {
        target: decode_target(&format!("{field}.target"), backend.target.as_ref())?,
        weight: backend.weight,
        request_headers: each(&format!("{field}.request_headers"), &backend.request_headers, decode_change)?,
        response_headers: each(
            &format!("{field}.response_headers"),
            &backend.response_headers,
            decode_change,
        )?,
    })
}
