//! What rules do with requests. A filter that is not known is a problem: a request must not go without it.

use ambit_core::route::{
    Cors, Filter, HeaderChange, Mirror, OriginMatch, PathRewrite, Redirect, RedirectStatus, Rewrite, Scheme,
};
use http::{HeaderName, HeaderValue};

use super::super::Problem;
use super::super::common::{decode_enum, decode_port, each};
use super::matching::header_name;
use super::target::{decode_target, encode_target};
use crate::proto::ambit::v1 as wire;
use wire::path_rewrite::Path;
use wire::route_cors::origin::Origin;
use wire::route_filter::Filter as Kind;

pub(super) fn encode_filter(filter: &Filter) -> wire::RouteFilter {
    let filter = match filter {
        Filter::RequestHeaders(change) => Kind::RequestHeaders(encode_change(change)),
        Filter::ResponseHeaders(change) => Kind::ResponseHeaders(encode_change(change)),
        Filter::Redirect(redirect) => Kind::Redirect(encode_redirect(redirect)),
        Filter::Rewrite(rewrite) => Kind::Rewrite(wire::RouteRewrite {
            hostname: rewrite.hostname.as_deref().map(Into::into),
            path: rewrite.path.as_ref().map(encode_path),
        }),
        Filter::Mirror(mirror) => Kind::Mirror(wire::RouteMirror {
            target: Some(encode_target(&mirror.target)),
            numerator: mirror.numerator,
            denominator: mirror.denominator,
        }),
        Filter::Cors(cors) => Kind::Cors(encode_cors(cors)),
    };
    wire::RouteFilter { filter: Some(filter) }
}

pub(super) fn decode_filter(field: &str, filter: &wire::RouteFilter) -> Result<Filter, Problem> {
    Ok(match &filter.filter {
        Some(Kind::RequestHeaders(change)) => Filter::RequestHeaders(decode_change(field, change)?),
        Some(Kind::ResponseHeaders(change)) => Filter::ResponseHeaders(decode_change(field, change)?),
        Some(Kind::Redirect(redirect)) => Filter::Redirect(decode_redirect(field, redirect)?),
        Some(Kind::Rewrite(rewrite)) => Filter::Rewrite(Rewrite {
            hostname: rewrite.hostname.as_deref().map(Into::into),
            path: rewrite.path.as_ref().map(|path| decode_path(field, path)).transpose()?,
        }),
        Some(Kind::Mirror(mirror)) if mirror.denominator == 0 => {
            return Err(Problem::new(format!("{field}.denominator"), "must not be 0"));
        }
        Some(Kind::Mirror(mirror)) => Filter::Mirror(Mirror {
            target: decode_target(&format!("{field}.target"), mirror.target.as_ref())?,
            numerator: mirror.numerator,
            denominator: mirror.denominator,
        }),
        Some(Kind::Cors(cors)) => Filter::Cors(decode_cors(field, cors)?),
        None => return Err(Problem::new(field, "is of no known kind")),
    })
}

pub(super) fn encode_change(change: &HeaderChange) -> wire::HeaderChange {
    let pair = |(name, value): &(HeaderName, HeaderValue)| wire::HeaderValue {
        name: name.to_string(),
        value: value.as_bytes().to_vec(),
    };
    wire::HeaderChange {
        set: change.set.iter().map(pair).collect(),
        add: change.add.iter().map(pair).collect(),
        remove: change.remove.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn decode_change(field: &str, change: &wire::HeaderChange) -> Result<HeaderChange, Problem> {
    let pair = |field: &str, it: &wire::HeaderValue| {
        let value = HeaderValue::from_bytes(&it.value);
        let value = value.map_err(|_| Problem::new(format!("{field}.value"), "is not a header's value"))?;
        Ok((header_name(&format!("{field}.name"), &it.name)?, value))
    };
    Ok(HeaderChange {
        set: each(&format!("{field}.set"), &change.set, pair)?,
        add: each(&format!("{field}.add"), &change.add, pair)?,
        remove: each(&format!("{field}.remove"), &change.remove, |field, text| header_name(field, text))?,
    })
}

fn encode_redirect(redirect: &Redirect) -> wire::RouteRedirect {
    wire::RouteRedirect {
        scheme: match redirect.scheme {
            None => wire::route_redirect::Scheme::Same,
            Some(Scheme::Http) => wire::route_redirect::Scheme::Http,
            Some(Scheme::Https) => wire::route_redirect::Scheme::Https,
        }
        .into(),
        hostname: redirect.hostname.as_deref().map(Into::into),
        path: redirect.path.as_ref().map(encode_path),
        port: redirect.port.map(Into::into),
        status: redirect.status.code().as_u16().into(),
    }
}

fn decode_redirect(field: &str, redirect: &wire::RouteRedirect) -> Result<Redirect, Problem> {
    let status = match redirect.status {
        301 => RedirectStatus::MovedPermanently,
        302 => RedirectStatus::Found,
        303 => RedirectStatus::SeeOther,
        307 => RedirectStatus::TemporaryRedirect,
        308 => RedirectStatus::PermanentRedirect,
        other => return Err(Problem::new(format!("{field}.status"), format!("{other} is not a redirect"))),
    };
    Ok(Redirect {
        scheme: match decode_enum(&format!("{field}.scheme"), redirect.scheme)? {
            wire::route_redirect::Scheme::Same => None,
            wire::route_redirect::Scheme::Http => Some(Scheme::Http),
            wire::route_redirect::Scheme::Https => Some(Scheme::Https),
        },
        hostname: redirect.hostname.as_deref().map(Into::into),
        path: redirect.path.as_ref().map(|path| decode_path(field, path)).transpose()?,
        port: redirect.port.map(|port| decode_port(|| format!("{field}.port"), port)).transpose()?,
        status,
    })
}

fn encode_path(path: &PathRewrite) -> wire::PathRewrite {
    let path = match path {
        PathRewrite::Full(path) => Path::Full(path.to_string()),
        PathRewrite::Prefix(path) => Path::Prefix(path.to_string()),
    };
    wire::PathRewrite { path: Some(path) }
}

fn decode_path(field: &str, path: &wire::PathRewrite) -> Result<PathRewrite, Problem> {
    match &path.path {
        Some(Path::Full(path)) => Ok(PathRewrite::Full(path.as_str().into())),
        Some(Path::Prefix(path)) => Ok(PathRewrite::Prefix(path.as_str().into())),
        None => Err(Problem::new(format!("{field}.path"), "is of no known kind")),
    }
}

fn encode_cors(cors: &Cors) -> wire::RouteCors {
    let origin = |origin: &OriginMatch| wire::route_cors::Origin {
        origin: Some(match origin {
            OriginMatch::Any => Origin::Any(true),
            OriginMatch::Exact(text) => Origin::Exact(text.to_string()),
            OriginMatch::Below { scheme, domain } => Origin::Below(wire::route_cors::Below {
                scheme: scheme.to_string(),
                domain: domain.to_string(),
            }),
        }),
    };
    let texts = |list: &[Box<str>]| list.iter().map(ToString::to_string).collect();
    wire::RouteCors {
        origins: cors.origins.iter().map(origin).collect(),
        credentials: cors.credentials,
        methods: texts(&cors.methods),
        headers: texts(&cors.headers),
        exposed: cors.exposed.iter().map(ToString::to_string).collect(),
        max_age: cors.max_age,
    }
}

fn decode_cors(field: &str, cors: &wire::RouteCors) -> Result<Cors, Problem> {
    let texts = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
    let origin = |field: &str, it: &wire::route_cors::Origin| match &it.origin {
        Some(Origin::Any(_)) => Ok(OriginMatch::Any),
        Some(Origin::Exact(text)) => Ok(OriginMatch::Exact(text.as_str().into())),
        Some(Origin::Below(below)) => Ok(OriginMatch::Below {
            scheme: below.scheme.as_str().into(),
            domain: below.domain.as_str().into(),
        }),
        None => Err(Problem::new(field, "is of no known kind")),
    };
    Ok(Cors {
        origins: each(&format!("{field}.origins"), &cors.origins, origin)?,
        credentials: cors.credentials,
        methods: texts(&cors.methods),
        headers: texts(&cors.headers),
        exposed: each(&format!("{field}.exposed"), &cors.exposed, |field, text| header_name(field, text))?,
        max_age: cors.max_age,
    })
}
