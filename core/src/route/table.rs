//! All routes of a service in the order in which a request is held against them: [`Table`].

use std::collections::HashMap;
use std::sync::Arc;

use super::matching::{Match, PathMatch, Request};
use super::rank::Rank;
use super::rule::{Route, Rule};
use super::tree::Tree;

/// The routes of one service and port, indexed by path. It is built when configuration changes and never
/// changed.
#[derive(Debug)]
pub struct Table {
    exact: HashMap<Box<str>, Vec<Candidate>>,
    prefixes: Tree<Candidate>,
    patterns: Vec<Candidate>,
}

/// The rule that serves a request, and the route that it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The route.
    pub route: &'a Arc<Route>,
    /// One of its rules.
    pub rule: &'a Rule,
    /// The match that held: a prefix rewrite replaces what it matched.
    pub matched: &'a Match,
}

#[derive(Clone, Debug)]
struct Candidate {
    route: Arc<Route>,
    rule: usize,
    matched: usize,
}

impl Table {
    /// Orders all matches of these routes.
    pub fn new(routes: &[Arc<Route>]) -> Self {
        let mut candidates = Vec::new();
        for route in routes {
            for (rule, it) in route.rules.iter().enumerate() {
                for (index, matched) in it.matches.iter().enumerate() {
                    let candidate = Candidate { route: Arc::clone(route), rule, matched: index };
                    candidates.push((Rank::of(route, rule, index, matched), candidate));
                }
            }
        }
        candidates.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut table = Self { exact: HashMap::new(), prefixes: Tree::new(), patterns: Vec::new() };
        // In this order each list below is in order of rank, too.
        for (_, candidate) in candidates {
            table.insert(candidate);
        }
        table
    }

    fn insert(&mut self, candidate: Candidate) {
        match &candidate.found().matched.path {
            PathMatch::Exact(path) => {
                let path = path.clone();
                self.exact.entry(path).or_default().push(candidate);
            }
            PathMatch::Prefix(prefix) => {
                let prefix = prefix.clone();
                self.prefixes.insert(&prefix, candidate);
            }
            PathMatch::Pattern(_) => self.patterns.push(candidate),
        }
    }

    /// The rule that serves a request; none where no route matches, which is an answer of its own (404).
    pub fn find(&self, request: &Request<'_>) -> Option<Found<'_>> {
        let exact = self.exact.get(request.path).into_iter().flatten();
        exact
            .chain(self.prefixes.prefixes_of(request.path))
            .map(Candidate::found)
            .find(|it| it.matched.matches_beside_path(request))
            .or_else(|| self.patterns.iter().map(Candidate::found).find(|it| it.matched.matches(request)))
    }
}

impl Candidate {
    fn found(&self) -> Found<'_> {
        let rule = &self.route.rules[self.rule];
        Found { route: &self.route, rule, matched: &rule.matches[self.matched] }
    }
}
