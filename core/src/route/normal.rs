//! The one form of a path that routes, policies and backends see: [`normalized`].

use std::borrow::Cow;

/// The path without dot segments, backslashes and escapes of unreserved characters (RFC 3986, 6.2.2), so that
/// two spellings of one resource take one route. Escaped slashes and doubled slashes are what they are:
/// another path.
///
/// Nothing is copied where there is nothing to change.
pub fn normalized(path: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte != b'%' && byte != b'\\';
    if path.bytes().all(plain) && !path.contains("/.") {
        return Cow::Borrowed(path);
    }
    without_dots(&unescaped(path)).into()
}

/// Decodes what never needed an escape, and writes the others in one case.
fn unescaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix('\\') {
            text.push('/');
            rest = after;
            continue;
        }
        match rest.get(1..3).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                text.push(char::from(byte));
                rest = &rest[3..];
            }
            Some(_) => {
                text.push_str(&rest[..3].to_ascii_uppercase());
                rest = &rest[3..];
            }
            // No escape at all: it stays as it is.
            None => {
                text.push('%');
                rest = &rest[1..];
            }
        }
    }
    text.push_str(rest);
    text
}

/// RFC 3986, 5.2.4.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut is_folder = false;
    for segment in path.split('/').skip(1) {
        is_folder = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    if is_folder {
        kept.push("");
    }
    format!("/{}", kept.join("/"))
}
