//! Parameters of a query string, compared without being copied.

use std::borrow::Cow;

/// The first parameter of that name, as it stands in the query string (`+` and `%XX` unread).
///
/// Gateway API leaves repeated parameters open and recommends the first value.
pub(super) fn first<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        equals(key, name).then_some(value)
    })
}

/// Whether an encoded text says `plain`.
pub(super) fn equals(encoded: &str, plain: &str) -> bool {
    decoded(encoded).eq(plain.bytes())
}

/// The text itself, for expressions: copied only where something is encoded.
pub(super) fn text(encoded: &str) -> Cow<'_, str> {
    if encoded.bytes().any(|byte| byte == b'%' || byte == b'+') {
        let bytes: Vec<u8> = decoded(encoded).collect();
        return Cow::Owned(String::from_utf8_lossy(&bytes).into_owned());
    }
    Cow::Borrowed(encoded)
}

/// The bytes that an encoded text stands for; a `%` without two hexadecimal digits is itself.
fn decoded(encoded: &str) -> impl Iterator<Item = u8> + '_ {
    let bytes = encoded.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let byte = *bytes.get(at)?;
        at += 1;
        match byte {
            b'+' => Some(b' '),
            b'%' => {
                let digit = |index: usize| bytes.get(index).and_then(|it| char::from(*it).to_digit(16));
                let (Some(high), Some(low)) = (digit(at), digit(at + 1)) else { return Some(b'%') };
                at += 2;
                u8::try_from(high * 16 + low).ok()
            }
            other => Some(other),
        }
    })
}
