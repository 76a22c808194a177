//! Changes of a request's host and path: [`Rewrite`], [`PathRewrite::apply`].

use super::matching::PathMatch;

/// What a URL-rewrite filter does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The new `Host`.
    pub hostname: Option<Box<str>>,
    /// The new path.
    pub path: Option<PathRewrite>,
}

/// A new path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// This one.
    Full(Box<str>),
    /// This one in place of the prefix that matched.
    Prefix(Box<str>),
}

impl PathRewrite {
    /// The path of a request that a match with this path has chosen. Exactly one slash stands where the new
    /// prefix and the rest meet, and a path is never empty.
    ///
    /// A prefix is replaced only where a prefix matched: validation refuses anything else, and a path that
    /// comes here all the same stays as it is.
    pub fn apply(&self, path: &str, matched: &PathMatch) -> String {
        match (self, matched) {
            (Self::Full(full), _) => full.to_string(),
            (Self::Prefix(prefix), PathMatch::Prefix(old)) => {
                let old = old.strip_suffix('/').unwrap_or(old);
                let rest = path.strip_prefix(old).unwrap_or(path);
                joined(prefix, rest)
            }
            (Self::Prefix(_), PathMatch::Exact(_) | PathMatch::Pattern(_)) => path.to_owned(),
        }
    }
}

/// A prefix and a rest that is empty or starts with a slash.
fn joined(prefix: &str, rest: &str) -> String {
    let path = format!("{}{rest}", prefix.strip_suffix('/').unwrap_or(prefix));
    if path.starts_with('/') { path } else { format!("/{path}") }
}
