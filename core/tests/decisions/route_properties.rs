//! The indexed table against a slow search that is written from the specification's sentences.

use std::sync::Arc;

use ambit_core::route::{
    HeaderMatch, Match, PathMatch, Pattern, QueryMatch, Request, Route, Table, ValueMatch,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use proptest::sample::select;

use crate::route::{route, rule};

const PATHS: [&str; 10] = ["/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/ab", "/b", "/b//c", "/a/bc"];
const EXPRESSIONS: [&str; 5] = ["/a.*", "/[ab]/b", ".*", "/(a|b)", "/a/b/?"];
const NAMES: [&str; 3] = ["x-a", "x-b", "x-c"];
const METHODS: [Method; 2] = [Method::GET, Method::POST];

/// Sets of routes per run; `cargo xtask test --all` asks for more by PROPTEST_CASES.
const SETS: u32 = 2000;

fn value() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        select(vec!["1", "2"]).prop_map(|it| ValueMatch::Exact(it.into())),
        select(vec!["[12]", "1|3"])
            .prop_map(|it| ValueMatch::Pattern(Pattern::new(it).expect("an expression"))),
    ]
}

fn path() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        select(PATHS.to_vec()).prop_map(|it| PathMatch::Exact(it.into())),
        select(PATHS.to_vec()).prop_map(|it| PathMatch::Prefix(it.into())),
        select(EXPRESSIONS.to_vec())
            .prop_map(|it| PathMatch::Pattern(Pattern::new(it).expect("an expression"))),
    ]
}

/// Conditions on distinct names, as the API demands.
fn conditions() -> impl Strategy<Value = Vec<(&'static str, ValueMatch)>> {
    [value(), value(), value()].prop_flat_map(|values| {
        let all: Vec<_> = NAMES.into_iter().zip(values).collect();
        (Just(all), 0..=7_u8).prop_map(|(all, chosen)| {
            all.into_iter().enumerate().filter(|(at, _)| chosen & (1 << at) != 0).map(|(_, it)| it).collect()
        })
    })
}

fn matched() -> impl Strategy<Value = Match> {
    (path(), proptest::option::of(select(METHODS.to_vec())), conditions(), conditions()).prop_map(
        |(path, method, headers, query)| Match {
            path,
            method,
            headers: headers
                .into_iter()
                .map(|(name, value)| HeaderMatch { name: HeaderName::from_static(name), value })
                .collect(),
            query: query.into_iter().map(|(name, value)| QueryMatch { name: name.into(), value }).collect(),
        },
    )
}

fn routes() -> impl Strategy<Value = Vec<Arc<Route>>> {
    let rules = proptest::collection::vec(proptest::collection::vec(matched(), 1..4), 1..4);
    proptest::collection::vec((rules, 0..3_i64), 1..5).prop_map(|all| {
        let name = |at: usize| ["d", "b", "a", "c"][at];
        all.into_iter()
            .enumerate()
            .map(|(at, (rules, created))| {
                let rules = rules.into_iter().enumerate();
                let rules = rules.map(|(index, it)| rule(&format!("{}{index}", name(at)), it)).collect();
                route(name(at), created, rules)
            })
            .collect()
    })
}

#[derive(Debug)]
struct Asked {
    method: Method,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

fn asked() -> impl Strategy<Value = Asked> {
    let pairs = || {
        proptest::collection::vec(select(vec!["1", "2", "3", ""]), 3).prop_map(|values| {
            let pairs = NAMES.into_iter().zip(values);
            pairs.filter(|(_, value)| !value.is_empty()).collect::<Vec<_>>()
        })
    };
    (select(METHODS.to_vec()), select(PATHS.to_vec()), pairs(), pairs())
        .prop_map(|(method, path, headers, query)| Asked { method, path, headers, query })
}

/// Whether one match holds, sentence by sentence.
fn holds(matched: &Match, asked: &Asked) -> bool {
    let elements = |path: &str| path.trim_end_matches('/').split('/').map(str::to_owned).collect::<Vec<_>>();
    let path = match &matched.path {
        PathMatch::Exact(path) => **path == *asked.path,
        PathMatch::Prefix(path) => elements(asked.path).starts_with(&elements(path)),
        PathMatch::Pattern(pattern) => pattern.matches(asked.path),
    };
    let value = |wanted: &ValueMatch, pairs: &[(&str, &str)], name: &str| {
        let found = pairs.iter().find(|(it, _)| *it == name);
        found.is_some_and(|(_, it)| match wanted {
            ValueMatch::Exact(exact) => **exact == **it,
            ValueMatch::Pattern(pattern) => pattern.matches(it),
        })
    };
    path && matched.method.as_ref().is_none_or(|it| *it == asked.method)
        && matched.headers.iter().all(|it| value(&it.value, &asked.headers, it.name.as_str()))
        && matched.query.iter().all(|it| value(&it.value, &asked.query, &it.name))
}

/// Whether the first of two matches that both hold comes before the second, sentence by sentence.
fn before(one: &Match, other: &Match) -> std::cmp::Ordering {
    let class = |it: &Match| match &it.path {
        PathMatch::Exact(_) => (0, 0),
        PathMatch::Prefix(path) => (1, -i64::try_from(path.trim_end_matches('/').len()).expect("a length")),
        PathMatch::Pattern(pattern) => (2, -i64::try_from(pattern.as_str().len()).expect("a length")),
    };
    let method = |it: &Match| it.method.is_none();
    class(one)
        .cmp(&class(other))
        .then_with(|| method(one).cmp(&method(other)))
        .then_with(|| other.headers.len().cmp(&one.headers.len()))
        .then_with(|| other.query.len().cmp(&one.query.len()))
}

fn reference(routes: &[Arc<Route>], asked: &Asked) -> Option<Arc<str>> {
    let mut oldest_first = routes.to_vec();
    oldest_first.sort_by_key(|it| (it.created, it.key.name.clone()));
    let mut all = Vec::new();
    for route in &oldest_first {
        for rule in &route.rules {
            all.extend(rule.matches.iter().filter(|it| holds(it, asked)).map(|it| (it, rule.name.clone())));
        }
    }
    // A stable sort: what is equal stays in the order above, oldest, by name, first in the list.
    all.sort_by(|(one, _), (other, _)| before(one, other));
    all.into_iter().next().and_then(|(_, name)| name)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(SETS), ..ProptestConfig::default()
    })]

    #[test]
    fn table_and_slow_search_agree(
        routes in routes(), requests in proptest::collection::vec(asked(), 8),
    ) {
        let table = Table::new(&routes);
        for asked in requests {
            let mut headers = HeaderMap::new();
            for (name, value) in &asked.headers {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            let query = asked.query.iter().map(|(name, value)| format!("{name}={value}"));
            let query = query.collect::<Vec<_>>().join("&");
            let request =
                Request { method: &asked.method, path: asked.path, query: Some(&query), headers: &headers };
            let found = table.find(&request).and_then(|it| it.rule.name.clone());
            prop_assert_eq!(found, reference(&routes, &asked), "{:?}", asked);
        }
    }
}
