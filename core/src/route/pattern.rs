//! A regular expression of a route: [`Pattern`].
//!
//! The `regex` crate runs in time linear in the text, whatever the expression: nobody's route can stall a
//! proxy.

use std::fmt;

use regex::Regex;
use thiserror::Error;

/// An expression that must match a whole value, as Envoy's do.
#[derive(Clone)]
pub struct Pattern {
    source: Box<str>,
    whole: Regex,
}

/// Why a text is no regular expression.
#[derive(Debug, Error)]
#[error("failed to read the regular expression {source_text:?}: {source}")]
pub struct PatternError {
    source_text: Box<str>,
    source: regex::Error,
}

impl Pattern {
    /// Compiles an expression; one that would need over 1 MiB is refused, which is `regex`'s own measure of a
    /// program's size (10 MiB is its default, too much for something that every namespace may write).
    pub fn new(source: &str) -> Result<Self, PatternError> {
        let failed = |error| PatternError { source_text: source.into(), source: error };
        // Alone first: `a)(b` would be read otherwise between the anchors.
        Regex::new(source).map_err(failed)?;
        let whole = regex::RegexBuilder::new(&format!("^(?:{source})$"))
            .size_limit(1 << 20)
            .build()
            .map_err(failed)?;
        Ok(Self { source: source.into(), whole })
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.source)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}
