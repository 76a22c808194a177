//! Rows of documents, with the objects or mistakes that they are read as.

use std::collections::BTreeMap;

use super::*;

mod gateway_api;
mod istio;
mod kubernetes;
mod mistakes;
mod properties;

/// The only document's object.
fn accepted(text: &str) -> Object {
    let documents = parse(text);
    match &documents[..] {
        [Document { outcome: Outcome::Accepted { object, .. }, .. }] => (**object).clone(),
        other => panic!("{text}\n{other:#?}"),
    }
}

/// The only document's mistakes, and the object they are in.
fn rejected(text: &str) -> (Option<String>, Vec<String>) {
    let documents = parse(text);
    match &documents[..] {
        [Document { outcome: Outcome::Rejected { object, mistakes, .. }, .. }] => {
            (object.as_ref().map(ToString::to_string), mistakes.iter().map(ToString::to_string).collect())
        }
        other => panic!("{text}\n{other:#?}"),
    }
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[test]
fn a_bad_document_does_not_affect_its_neighbours() {
    let text = "
apiVersion: v1
kind: Namespace
metadata: {name: one}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
---
apiVersion: [
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: two}}
- {apiVersion: v1, kind: Namespace, metadata: {name: TWO}}
";
    let outline: Vec<String> = parse(text)
        .into_iter()
        .map(|document| {
            let outcome = match document.outcome {
                Outcome::Accepted { object, .. } => format!("accepted {}", object.key()),
                Outcome::Ignored { what } => format!("ignored {what}"),
                Outcome::Rejected { object, .. } => {
                    format!("rejected {}", object.map_or("?".to_owned(), |key| key.to_string()))
                }
            };
            format!("{}: {outcome}", document.position)
        })
        .collect();
    assert_eq!(
        outline,
        [
            "line 1: accepted Namespace one",
            "line 5: ignored ConfigMap shop/settings (v1)",
            "line 9: rejected ?",
            "line 11, items[0]: accepted Namespace two",
            "line 11, items[1]: rejected Namespace TWO",
        ]
    );
}

#[test]
fn every_kind_is_known_by_its_name() {
    for &kind in Kind::ALL {
        let group = match kind {
            Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::WorkloadEntry | Kind::ServiceEntry => "networking.istio.io/v1",
            Kind::AuthorizationPolicy | Kind::PeerAuthentication => "security.istio.io/v1",
            Kind::Gateway
            | Kind::HTTPRoute
            | Kind::GRPCRoute
            | Kind::TLSRoute
            | Kind::TCPRoute
            | Kind::ReferenceGrant => "gateway.networking.k8s.io/v1",
        };
        assert!(matches!(known(group, &kind.to_string()), Known::Kind(found) if found == kind), "{kind}");
    }
}
