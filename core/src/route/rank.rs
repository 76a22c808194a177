//! Which of several matches of a request wins: [`Rank`].

use std::cmp::Reverse;

use super::matching::{Match, PathMatch};
use super::rule::{Route, RouteKey};

/// The place of a match among all matches for one host; the smallest rank wins.
///
/// Fields stand in the order in which Gateway API compares: HTTPRoute before GRPCRoute has no rule there (the
/// two may not share a host, which is a condition of their status); everything else is the specification's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    path: PathRank,
    without_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    /// Seconds since 1970: the oldest route wins.
    created: i64,
    route: RouteKey,
    rule: usize,
    index: usize,
}

/// Exact paths, then prefixes, the longest first, then expressions, the longest first (where Gateway API
/// leaves the place of expressions open).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    /// A gRPC method of any service is an expression in an HTTPRoute's eyes, but GRPCRoute counts characters.
    Prefix(Reverse<usize>),
    Pattern(Reverse<usize>),
}

impl Rank {
    /// The rank of one match of one rule of a route.
    pub(super) fn of(route: &Route, rule: usize, index: usize, matched: &Match) -> Self {
        Self {
            path: match &matched.path {
                PathMatch::Exact(_) => PathRank::Exact,
                PathMatch::Prefix(prefix) => PathRank::Prefix(Reverse(characters(prefix))),
                PathMatch::Pattern(pattern) => PathRank::Pattern(Reverse(pattern.as_str().chars().count())),
            },
            without_method: matched.method.is_none(),
            headers: Reverse(matched.headers.len()),
            query: Reverse(matched.query.len()),
            created: route.created,
            route: route.key.clone(),
            rule,
            index,
        }
    }
}

/// The length of a prefix without its last slash: `/shop` and `/shop/` match the same paths.
fn characters(prefix: &str) -> usize {
    prefix.strip_suffix('/').unwrap_or(prefix).chars().count()
}

impl Ord for RouteKey {
    /// By `namespace/name`, as Gateway API orders routes of the same age.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.namespace, &self.name, self.kind).cmp(&(&other.namespace, &other.name, other.kind))
    }
}

impl PartialOrd for RouteKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
