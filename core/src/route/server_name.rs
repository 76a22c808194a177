//! Which server names of TLS a route means: [`ServerNameMatch`].

use std::fmt;

/// A hostname of a TLSRoute, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerNameMatch {
    /// This name.
    Exact(Box<str>),
    /// Every name below this one, by any number of labels: what stands after `*.`.
    Below(Box<str>),
}

impl ServerNameMatch {
    /// Reads a hostname as Gateway API writes it, `*.` in front at most. None if it is none, or an address.
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.to_ascii_lowercase();
        let (below, name) = match name.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, name.as_str()),
        };
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // Of an address the last label is a number, of a name it never is (RFC 3696).
        let is_address =
            name.rsplit('.').next().is_some_and(|it| it.bytes().all(|byte| byte.is_ascii_digit()));
        if text.len() > 253 || is_address || !name.split('.').all(label) {
            return None;
        }
        Some(if below { Self::Below(name.into()) } else { Self::Exact(name.into()) })
    }
}

impl fmt::Display for ServerNameMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}
