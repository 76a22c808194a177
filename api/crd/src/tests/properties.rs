//! Any text and any object is read without a panic.

use proptest::prelude::*;
use serde_json::Value;

use crate::{Outcome, parse};

/// Trees that look like objects: known field names, values of any type.
fn tree() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "",
        "a",
        "shop",
        "v1",
        "None",
        "TCP",
        "80",
        "-1",
        "10.0.0.1",
        "::1",
        "10.0.0.0/8",
        "STRICT",
        "DENY",
        "*",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.prop_map(Value::from),
    ];
    let field = prop::sample::select(vec![
        "metadata",
        "name",
        "namespace",
        "labels",
        "spec",
        "status",
        "rules",
        "from",
        "source",
        "ipBlocks",
        "to",
        "operation",
        "ports",
        "when",
        "key",
        "values",
        "selector",
        "matchLabels",
        "mtls",
        "mode",
        "portLevelMtls",
        "containers",
        "containerPort",
        "podIPs",
        "ip",
        "clusterIPs",
        "port",
        "targetPort",
        "addressType",
        "endpoints",
        "addresses",
        "conditions",
        "address",
        "action",
        "livenessProbe",
        "httpGet",
        "80",
    ]);
    leaf.prop_recursive(6, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(field.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in ".{0,200}") {
        parse(&text);
    }

    #[test]
    fn yaml_like_text_is_read_without_panic(
        text in "([a-c]|: |- |\n|\n---\n|\n...\n|  |\\[|\\]|\\{|\\}|,|'|\"|&a|\\*a|!t|\\||<<|#|%|0|\t){0,60}",
    ) {
        parse(&text);
    }

    #[test]
    fn accepted_objects_are_accepted_again_from_their_source(mut value in tree(), kind in 0_usize..7) {
        let (version, name) = [
            ("v1", "Namespace"),
            ("v1", "Pod"),
            ("v1", "Service"),
            ("discovery.k8s.io/v1", "EndpointSlice"),
            ("networking.istio.io/v1", "WorkloadEntry"),
            ("security.istio.io/v1", "AuthorizationPolicy"),
            ("security.istio.io/v1", "PeerAuthentication"),
        ][kind];
        if let Value::Object(map) = &mut value {
            map.insert("apiVersion".to_owned(), version.into());
            map.insert("kind".to_owned(), name.into());
        }
        let text = serde_json::to_string(&value).expect("a tree of values");
        let documents = parse(&text);
        // What is accepted is accepted again, unchanged, from the source that is kept of it.
        for document in documents {
            if let Outcome::Accepted { object, source } = document.outcome {
                let again = parse(&source.to_string());
                prop_assert_eq!(again.len(), 1);
                prop_assert_eq!(&again[0].outcome, &Outcome::Accepted { object, source });
            }
        }
    }
}
