//! The grammars of texts in policies. A value that can never match is a mistake: a DENY of it never matches.
//!
//! They are checked when an object is parsed, and by the derivation for objects from elsewhere.

use crate::model::Identity;

/// `*`, `*x`, `x*` or a text without `*`: in other places a `*` stands for itself.
pub fn one_wildcard(value: &str) -> Result<(), String> {
    let rest = value.strip_prefix('*').or_else(|| value.strip_suffix('*')).unwrap_or(value);
    if rest.contains('*') {
        return Err(format!("{value:?} never matches: * stands for anything at one end only"));
    }
    Ok(())
}

/// A namespace, or the beginning or end of one.
pub fn namespace(value: &str) -> Result<(), String> {
    one_wildcard(value)?;
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'*');
    if !value.bytes().all(valid) {
        return Err(format!(
            "{value:?} never matches: a namespace has lower-case letters, digits and '-' only"
        ));
    }
    Ok(())
}

/// `<trust domain>/ns/<namespace>/sa/<account>`, or the beginning or end of that.
pub fn principal(value: &str) -> Result<(), String> {
    if value.starts_with("spiffe:") {
        return Err(format!(
            "{value:?} never matches: a principal is written without spiffe://, as in \
             cluster.local/ns/shop/sa/web"
        ));
    }
    one_wildcard(value)?;
    if !value.contains('*') && format!("spiffe://{value}").parse::<Identity>().is_err() {
        return Err(format!(
            "{value:?} never matches: a principal is <trust domain>/ns/<namespace>/sa/<account>"
        ));
    }
    Ok(())
}

/// `namespace/account`, or an account of the policy's own namespace.
pub fn service_account(value: &str) -> Result<(), String> {
    let parts: Vec<&str> = value.split('/').collect();
    if parts.len() > 2 || parts.contains(&"") || value.contains('*') {
        return Err(format!("{value:?} is not a service account: name or namespace/name, without *"));
    }
    Ok(())
}
