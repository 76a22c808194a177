//! What differed in the kernel from what the daemon wrote: [`Difference`].

use std::fmt::{self, Debug};

/// Something that differed in the kernel and was put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The kind of object: a map's name, `link`, `pin` or `listener`.
    pub kind: &'static str,
    /// The object.
    pub object: String,
    /// What was found.
    pub found: String,
}

impl Difference {
    pub(crate) fn new(kind: &'static str, object: impl Into<String>, found: impl Into<String>) -> Self {
        Self { kind, object: object.into(), found: found.into() }
    }

    pub(crate) fn entry<K: Debug, V: Debug>(map: &'static str, key: &K, found: &Found<V>) -> Self {
        let found = match found {
            Found::Missing => "missing".to_owned(),
            Found::Changed(value) => format!("changed: {value:?}"),
            Found::Foreign(value) => format!("not written by this daemon: {value:?}"),
        };
        Self::new(map, format!("{key:?}"), found)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.object, self.found)
    }
}

/// How an entry differs from what should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<V> {
    /// There is none.
    Missing,
    /// It has another value.
    Changed(V),
    /// It should not be there.
    Foreign(V),
}
