//! What a waypoint's Gateway says of itself. Pure.

use std::collections::BTreeMap;

use ambit_core::derive::{USE_WAYPOINT_NAMESPACE, WAYPOINT_FOR};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde_json::Value;

/// What must hold of a waypoint that is ready.
const NEEDED: [&str; 2] = ["ambit.dev/Provisioned", "Programmed"];
/// The head of [`row`].
pub(super) const COLUMNS: [&str; 6] = ["NAMESPACE", "NAME", "FOR", "PROGRAMMED", "ADDRESS", "MESSAGE"];

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

/// The class of a Gateway.
pub(super) fn class(gateway: &DynamicObject) -> &str {
    gateway.data["spec"]["gatewayClassName"].as_str().unwrap_or_default()
}

pub(super) fn conditions(gateway: &DynamicObject) -> Vec<Condition> {
    let read = |value: &Value| {
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        Condition {
            kind: text("type"),
            status: text("status"),
            reason: text("reason"),
            message: text("message"),
        }
    };
    let conditions = gateway.data["status"]["conditions"].as_array();
    conditions.into_iter().flatten().map(read).collect()
}

/// What a waypoint lacks to be ready, one item a line.
pub(super) fn missing(gateway: &DynamicObject) -> Vec<String> {
    let conditions = conditions(gateway);
    let mut missing = Vec::new();
    for needed in NEEDED {
        match conditions.iter().find(|condition| condition.kind == needed) {
            Some(condition) if condition.status == "True" => {}
            Some(condition) => {
                missing.push(format!("{needed}: {} ({})", condition.message, condition.reason));
            }
            None => missing.push(format!("{needed}: not known yet")),
        }
    }
    missing
}

/// A line of the list.
pub(super) fn row(gateway: &DynamicObject) -> [String; 6] {
    let conditions = conditions(gateway);
    let programmed = conditions.iter().find(|condition| condition.kind == "Programmed");
    let addresses = gateway.data["status"]["addresses"].as_array().into_iter().flatten();
    let addresses = addresses.filter_map(|address| address["value"].as_str()).collect::<Vec<_>>();
    [
        gateway.namespace().unwrap_or_default(),
        gateway.name_any(),
        gateway.labels().get(WAYPOINT_FOR).map_or("service", String::as_str).to_owned(),
        programmed.map_or("Unknown", |condition| &condition.status).to_owned(),
        addresses.join(","),
        missing(gateway).join("; "),
    ]
}

/// Whether labels that name a waypoint of this name mean the one in `namespace`; `own` is where the labelled
/// object is.
pub(super) fn names(labels: &BTreeMap<String, String>, own: &str, namespace: &str) -> bool {
    labels.get(USE_WAYPOINT_NAMESPACE).map_or(own, String::as_str) == namespace
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gateway(conditions: &Value) -> DynamicObject {
        let object = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": { "name": "gate", "namespace": "shop" },
            "spec": { "gatewayClassName": "ambit-waypoint" },
            "status": { "conditions": conditions, "addresses": [{ "value": "10.96.0.9" }] },
        });
        serde_json::from_value(object).expect("a Gateway")
    }

    #[test]
    fn a_waypoint_is_ready_when_both_conditions_hold() {
        let of =
            |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "R", "message": "m"});
        let (made, programmed) = (of("ambit.dev/Provisioned", "True"), of("Programmed", "True"));
        let rows = [
            ("new", json!([]), vec!["ambit.dev/Provisioned: not known yet", "Programmed: not known yet"]),
            ("without pods yet", json!([made, of("Programmed", "False")]), vec!["Programmed: m (R)"]),
            (
                "wrong parameters",
                json!([of("ambit.dev/Provisioned", "False"), programmed]),
                vec!["ambit.dev/Provisioned: m (R)"],
            ),
            ("ready", json!([made, programmed]), vec![]),
        ];
        for (name, conditions, expected) in rows {
            assert_eq!(missing(&gateway(&conditions)), expected, "{name}");
        }
        let ready = row(&gateway(&json!([made, programmed])));
        assert_eq!(ready, ["shop", "gate", "service", "True", "10.96.0.9", ""]);
        assert_eq!(row(&gateway(&json!([])))[3], "Unknown");
    }

    #[test]
    fn labels_name_the_waypoint_of_a_namespace() {
        let elsewhere: BTreeMap<_, _> = [(USE_WAYPOINT_NAMESPACE.to_owned(), "edge".to_owned())].into();
        assert!(names(&BTreeMap::new(), "shop", "shop"));
        assert!(!names(&BTreeMap::new(), "shop", "edge"));
        assert!(names(&elsewhere, "shop", "edge"));
        assert!(!names(&elsewhere, "shop", "shop"));
    }
}
