//! Filters: [`filters`].

use ambit_core::derive::{RouteFilter, RuleEffect};
use ambit_core::route::{
    Cors, Filter, HeaderChange, OriginMatch, PathRewrite, Redirect, RedirectStatus, Rewrite, Scheme,
};
use http::{HeaderName, HeaderValue};

use super::notes::Notes;
use super::target::target;
use crate::gateway_api as written;

/// The filters of a rule or a backend, in their order. What they contradict each other in is a mistake of the
/// rule.
pub(super) fn filters(notes: &mut Notes<'_>, listed: Vec<written::Filter>) -> Vec<RouteFilter> {
    let kinds: Vec<String> = listed.iter().map(|filter| filter.kind.clone()).collect();
    for (index, kind) in kinds.iter().enumerate() {
        let repeatable = matches!(kind.as_str(), "RequestMirror" | "ExtensionRef");
        if !repeatable && kinds[..index].contains(kind) {
            let message = format!("{kind} stands there twice");
            notes.add(&format!("filters[{index}]"), message, RuleEffect::Incompatible);
        }
    }
    if kinds.iter().any(|kind| kind == "RequestRedirect") && kinds.iter().any(|kind| kind == "URLRewrite") {
        let message = "RequestRedirect and URLRewrite exclude each other";
        notes.add("filters", message, RuleEffect::Incompatible);
    }
    let listed = listed.into_iter().enumerate();
    listed.filter_map(|(index, it)| filter(notes, &format!("filters[{index}]"), it)).collect()
}

fn filter(notes: &mut Notes<'_>, field: &str, it: written::Filter) -> Option<RouteFilter> {
    let ready = |filter| Some(RouteFilter::Ready(filter));
    match it.kind.as_str() {
        "RequestHeaderModifier" => {
            let written = present(notes, field, it.request_header_modifier)?;
            headers(notes, field, &written).and_then(|change| ready(Filter::RequestHeaders(change)))
        }
        "ResponseHeaderModifier" => {
            let written = present(notes, field, it.response_header_modifier)?;
            headers(notes, field, &written).and_then(|change| ready(Filter::ResponseHeaders(change)))
        }
        "RequestMirror" => {
            let written = present(notes, field, it.request_mirror)?;
            mirror(notes, field, written)
        }
        "RequestRedirect" => {
            let written = present(notes, field, it.request_redirect)?;
            ready(Filter::Redirect(redirect(notes, field, written)?))
        }
        "URLRewrite" => {
            let written = present(notes, field, it.url_rewrite)?;
            let hostname = written.hostname.map(Into::into);
            let path = written.path.map(|path| rewrite(notes, field, path));
            ready(Filter::Rewrite(Rewrite { hostname, path: path.flatten() }))
        }
        "CORS" => {
            let written = present(notes, field, it.cors)?;
            ready(Filter::Cors(cors(notes, field, &written)?))
        }
        other => {
            notes.add(&format!("{field}.type"), format!("{other:?} is not supported"), RuleEffect::Fails);
            None
        }
    }
}

/// The field of the filter's type.
fn present<T>(notes: &mut Notes<'_>, field: &str, written: Option<T>) -> Option<T> {
    if written.is_none() {
        notes.add(field, "says nothing of its type", RuleEffect::Fails);
    }
    written
}

fn headers(notes: &mut Notes<'_>, field: &str, it: &written::HeaderModifier) -> Option<HeaderChange> {
    let name = |text: &str| HeaderName::try_from(text).ok();
    let pair =
        |header: &written::Header| Some((name(&header.name)?, HeaderValue::try_from(&header.value).ok()?));
    let set: Option<Vec<_>> = it.set.iter().map(pair).collect();
    let add: Option<Vec<_>> = it.add.iter().map(pair).collect();
    let remove: Option<Vec<_>> = it.remove.iter().map(|text| name(text)).collect();
    let (Some(set), Some(add), Some(remove)) = (set, add, remove) else {
        notes.add(field, "has what is not a header's name or value", RuleEffect::Fails);
        return None;
    };
    let change = HeaderChange { set, add, remove };
    // A `Host` would lead elsewhere than the rule says, and is rewritten by its own filter.
    let touches_host = change.set.iter().chain(&change.add).any(|(name, _)| name == http::header::HOST)
        || change.remove.contains(&http::header::HOST);
    if touches_host {
        notes.add(field, "Host is rewritten by URLRewrite", RuleEffect::Fails);
        return None;
    }
    (!is_nothing(&change)).then_some(change)
}

/// Header changes without any change, which mean nothing.
fn is_nothing(change: &HeaderChange) -> bool {
    *change == HeaderChange::default()
}

fn mirror(notes: &mut Notes<'_>, field: &str, it: written::RequestMirror) -> Option<RouteFilter> {
    let share = match (it.percent, it.fraction) {
        (None, None) => Some((100, 100)),
        (Some(percent), None) => Some((percent, 100)),
        (None, Some(fraction)) => Some((fraction.numerator, fraction.denominator.unwrap_or(100))),
        (Some(_), Some(_)) => None,
    };
    let share = share.and_then(|(numerator, denominator)| {
        let share = (u32::try_from(numerator).ok()?, u32::try_from(denominator).ok()?);
        (share.1 > 0 && share.0 <= share.1).then_some(share)
    });
    let Some((numerator, denominator)) = share else {
        let message = "percent or fraction must be one share of at most the whole";
        notes.add(&format!("{field}.requestMirror"), message, RuleEffect::Fails);
        return None;
    };
    let backend = target(notes, &format!("{field}.requestMirror.backendRef"), it.backend_ref);
    Some(RouteFilter::Mirror { backend, numerator, denominator })
}

fn redirect(notes: &mut Notes<'_>, field: &str, it: written::RequestRedirect) -> Option<Redirect> {
    let mut bad = |part: &str, message: String| {
        notes.add(&format!("{field}.requestRedirect.{part}"), message, RuleEffect::Fails);
    };
    let scheme = match it.scheme.as_deref() {
        None => None,
        Some("http") => Some(Scheme::Http),
        Some("https") => Some(Scheme::Https),
        Some(other) => {
            bad("scheme", format!("{other:?} is neither http nor https"));
            return None;
        }
    };
    let status = match it.status_code {
        None | Some(302) => RedirectStatus::Found,
        Some(301) => RedirectStatus::MovedPermanently,
        Some(303) => RedirectStatus::SeeOther,
        Some(307) => RedirectStatus::TemporaryRedirect,
        Some(308) => RedirectStatus::PermanentRedirect,
        Some(other) => {
            bad("statusCode", format!("{other} is not a redirect: 301, 302, 303, 307, 308"));
            return None;
        }
    };
    let port = match it.port.map(u16::try_from) {
        None => None,
        Some(Ok(port)) if port != 0 => Some(port),
        Some(_) => {
            bad("port", "is not a port: 1 to 65535".to_owned());
            return None;
        }
    };
    let path = match it.path {
        None => None,
        Some(path) => Some(rewrite(notes, field, path)?),
    };
    Some(Redirect { scheme, hostname: it.hostname.map(Into::into), path, port, status })
}

fn rewrite(notes: &mut Notes<'_>, field: &str, it: written::PathModifier) -> Option<PathRewrite> {
    let rewrite = match (it.kind.as_str(), it.replace_full_path, it.replace_prefix_match) {
        ("ReplaceFullPath", Some(path), None) => Some(PathRewrite::Full(path.into())),
        ("ReplacePrefixMatch", None, Some(path)) => Some(PathRewrite::Prefix(path.into())),
        _ => None,
    };
    if rewrite.is_none() {
        let message = "needs the field of its type, replaceFullPath or replacePrefixMatch, and no other";
        notes.add(&format!("{field}.path"), message, RuleEffect::Fails);
    }
    rewrite
}

fn cors(notes: &mut Notes<'_>, field: &str, it: &written::Cors) -> Option<Cors> {
    let mut origins = Vec::with_capacity(it.allow_origins.len());
    for (index, text) in it.allow_origins.iter().enumerate() {
        let Some(origin) = origin(text) else {
            let message = format!("{text:?} is not an origin: scheme and host, perhaps with `*.`");
            notes.add(&format!("{field}.cors.allowOrigins[{index}]"), message, RuleEffect::Fails);
            return None;
        };
        origins.push(origin);
    }
    let names = |list: &[String]| -> Vec<Box<str>> { list.iter().map(|text| text.as_str().into()).collect() };
    // A browser takes `*` as a name where credentials are sent, so nothing is lost by leaving it out.
    let exposed = it.expose_headers.iter().filter(|name| *name != "*");
    let exposed: Option<Vec<HeaderName>> = exposed.map(|name| HeaderName::try_from(name).ok()).collect();
    let Some(exposed) = exposed else {
        notes.add(&format!("{field}.cors.exposeHeaders"), "is not a header's name", RuleEffect::Fails);
        return None;
    };
    let max_age = it.max_age.map_or(Some(5), |age| u32::try_from(age).ok());
    let Some(max_age) = max_age else {
        notes.add(&format!("{field}.cors.maxAge"), "is not a number of seconds", RuleEffect::Fails);
        return None;
    };
    Some(Cors {
        origins,
        credentials: it.allow_credentials.unwrap_or_default(),
        methods: names(&it.allow_methods),
        headers: names(&it.allow_headers),
        exposed,
        max_age,
    })
}

fn origin(text: &str) -> Option<OriginMatch> {
    if text == "*" {
        return Some(OriginMatch::Any);
    }
    let (scheme, host) = text.split_once("://")?;
    if scheme.is_empty() || host.is_empty() || host.contains('/') {
        return None;
    }
    match host.strip_prefix('*') {
        None => Some(OriginMatch::Exact(text.into())),
        Some(domain) if domain.starts_with('.') => {
            Some(OriginMatch::Below { scheme: format!("{scheme}://").into(), domain: domain.into() })
        }
        Some(_) => None,
    }
}
