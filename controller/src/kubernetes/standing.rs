//! The statuses of Gateway API's objects as patches: [`patch`].

use ambit_core::derive::{ListenerStanding, ParentRef, ParentStanding, Standing, Statement};
use serde_json::{Map, Value, json};

/// The name under which routes' parents are written, as in the chart's GatewayClass.
pub(crate) const CONTROLLER_NAME: &str = "ambit.dev/waypoint";

/// What is known of an object's present status.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Present<'a> {
    /// `status.conditions` of a Gateway, `status.parents` of a route.
    pub(crate) listed: &'a [Value],
    /// `status.listeners` of a Gateway.
    pub(crate) listeners: &'a [Value],
    pub(crate) generation: i64,
    /// The time of a change, in the API's form.
    pub(crate) now: &'a str,
}

/// The `status` to be written; `None` if it is as it should be.
pub(crate) fn patch(standing: &Standing, present: Present<'_>) -> Option<Value> {
    match standing {
        Standing::Gateway { conditions, addresses, listeners } => {
            gateway(conditions, addresses, listeners, present)
        }
        Standing::Route(parents) => route(parents, present),
    }
}

fn gateway(
    statements: &[Statement],
    addresses: &[String],
    listeners: &[ListenerStanding],
    present: Present<'_>,
) -> Option<Value> {
    let ours = written(statements, present.listed, present);
    let is_ours = |it: &&Value| statements.iter().any(|statement| it["type"] == statement.kind);
    let old: Vec<&Value> = present.listed.iter().filter(is_ours).collect();
    let listeners: Vec<Value> = listeners.iter().map(|it| listener(it, present)).collect();
    // The same ones in any order.
    let same = old.len() == ours.len() && ours.iter().all(|it| old.contains(&it));
    if same && present.listeners == listeners {
        return None;
    }
    let others = present.listed.iter().filter(|it| !is_ours(it)).cloned();
    let addresses = addresses.iter().map(|text| {
        let kind = if text.parse::<std::net::IpAddr>().is_ok() { "IPAddress" } else { "Hostname" };
        json!({"type": kind, "value": text})
    });
    Some(json!({
        "conditions": others.chain(ours).collect::<Vec<_>>(),
        "addresses": addresses.collect::<Vec<_>>(),
        "listeners": listeners,
    }))
}

/// A listener of a waypoint: no route is attached to it, since those of a mesh have Services as parents.
fn listener(standing: &ListenerStanding, present: Present<'_>) -> Value {
    let before = present.listeners.iter().find(|it| it["name"] == standing.name);
    let before = before.and_then(|it| it["conditions"].as_array()).map(Vec::as_slice).unwrap_or_default();
    json!({
        "name": standing.name,
        "attachedRoutes": 0,
        "supportedKinds": [],
        "conditions": written(&standing.conditions, before, present),
    })
}

fn route(parents: &[ParentStanding], present: Present<'_>) -> Option<Value> {
    let is_ours = |it: &&Value| it["controllerName"] == CONTROLLER_NAME;
    let old: Vec<&Value> = present.listed.iter().filter(is_ours).collect();
    let ours = parents.iter().map(|standing| {
        let parent = reference(&standing.parent);
        let before = old.iter().find(|it| it["parentRef"] == parent);
        let before = before.and_then(|it| it["conditions"].as_array()).map(Vec::as_slice).unwrap_or_default();
        json!({
            "parentRef": parent,
            "controllerName": CONTROLLER_NAME,
            "conditions": written(&standing.conditions, before, present),
        })
    });
    let ours: Vec<Value> = ours.collect();
    if old.iter().copied().eq(&ours) {
        return None;
    }
    let others = present.listed.iter().filter(|it| !is_ours(it)).cloned();
    Some(json!({"parents": others.chain(ours).collect::<Vec<_>>()}))
}

/// Conditions as the API has them. One that says the same as before keeps its time.
pub(super) fn written(statements: &[Statement], before: &[Value], present: Present<'_>) -> Vec<Value> {
    let one = |statement: &Statement| {
        let status = if statement.holds { "True" } else { "False" };
        let old = before.iter().find(|it| it["type"] == statement.kind && it["status"] == status);
        let since = old.and_then(|old| old["lastTransitionTime"].as_str()).unwrap_or(present.now);
        json!({
            "type": statement.kind,
            "status": status,
            "reason": statement.reason,
            "message": statement.message,
            "observedGeneration": present.generation,
            "lastTransitionTime": since,
        })
    };
    statements.iter().map(one).collect()
}

/// A parent as it stands in the route; what is not set is left out.
fn reference(parent: &ParentRef) -> Value {
    let ParentRef { group, kind, namespace, name, section, port } = parent;
    let mut reference = Map::new();
    reference.insert("group".to_owned(), json!(group));
    reference.insert("kind".to_owned(), json!(kind));
    reference.insert("name".to_owned(), json!(name));
    let optional = [
        ("namespace", namespace.as_ref().map(|it| json!(it))),
        ("sectionName", section.as_ref().map(|it| json!(it))),
        ("port", port.map(|it| json!(it))),
    ];
    for (field, value) in optional {
        reference.extend(value.map(|value| (field.to_owned(), value)));
    }
    Value::Object(reference)
}

#[cfg(test)]
mod tests {
    use ambit_core::derive::ParentRef;

    use super::*;

    fn said(kind: &'static str, holds: bool) -> Statement {
        Statement { kind, holds, reason: "Accepted", message: String::new() }
    }

    fn condition(kind: &str, status: &str, since: &str) -> Value {
        json!({
            "type": kind, "status": status, "reason": "Accepted", "message": "", "observedGeneration": 3,
            "lastTransitionTime": since,
        })
    }

    #[test]
    fn a_gateway_keeps_others_conditions_and_the_time_of_ours() {
        let foreign = condition("example.com/Other", "True", "2026-01-01T00:00:00Z");
        let standing = |programmed| Standing::Gateway {
            conditions: vec![said("Accepted", true), said("Programmed", programmed)],
            addresses: vec!["10.96.0.9".to_owned(), "wp.shop.svc.cluster.local".to_owned()],
            listeners: vec![ListenerStanding {
                name: "mesh".to_owned(),
                conditions: vec![said("Accepted", true), said("Programmed", programmed)],
            }],
        };
        let at = |listed| Present { listed, listeners: &[], generation: 3, now: "2026-02-02T00:00:00Z" };
        let listed = [foreign.clone()];
        let first = patch(&standing(false), at(&listed)).expect("it is new");
        let expected = json!([
            foreign,
            condition("Accepted", "True", "2026-02-02T00:00:00Z"),
            condition("Programmed", "False", "2026-02-02T00:00:00Z"),
        ]);
        assert_eq!(first["conditions"], expected);
        assert_eq!(first["addresses"][0], json!({"type": "IPAddress", "value": "10.96.0.9"}));
        let expected = json!([{
            "name": "mesh", "attachedRoutes": 0, "supportedKinds": [],
            "conditions": [
                condition("Accepted", "True", "2026-02-02T00:00:00Z"),
                condition("Programmed", "False", "2026-02-02T00:00:00Z"),
            ],
        }]);
        assert_eq!(first["listeners"], expected);
        let listed = first["conditions"].as_array().expect("a list").clone();
        let listeners = first["listeners"].as_array().expect("a list").clone();
        let later = Present { listeners: &listeners, now: "2026-03-03T00:00:00Z", ..at(&listed) };
        let removed = patch(&standing(false), Present { listeners: &[], ..later }).expect("none is listed");
        assert_eq!(removed["listeners"][0]["name"], "mesh");
        assert_eq!(patch(&standing(false), later), None, "it is as it should be");
        let changed = patch(&standing(true), later).expect("one differs");
        assert_eq!(changed["conditions"][1]["lastTransitionTime"], "2026-02-02T00:00:00Z");
        assert_eq!(changed["conditions"][2]["lastTransitionTime"], "2026-03-03T00:00:00Z");
        let of_listener = |index: usize| &changed["listeners"][0]["conditions"][index]["lastTransitionTime"];
        assert_eq!((of_listener(0), of_listener(1)), (&json!("2026-02-02T00:00:00Z"), &json!(later.now)));
    }

    #[test]
    fn a_route_keeps_the_parents_of_other_controllers() {
        let parent =
            ParentRef { kind: "Service".into(), name: "cart".into(), port: Some(80), ..ParentRef::default() };
        let standing =
            Standing::Route(vec![ParentStanding { parent, conditions: vec![said("Accepted", true)] }]);
        let foreign =
            json!({"parentRef": {"name": "gw"}, "controllerName": "example.com/gw", "conditions": []});
        let listed = [foreign.clone()];
        let present = Present { listed: &listed, listeners: &[], generation: 3, now: "2026-02-02T00:00:00Z" };
        let status = patch(&standing, present).expect("it is new");
        assert_eq!(status["parents"][0], foreign);
        let reference = json!({"group": "", "kind": "Service", "name": "cart", "port": 80});
        assert_eq!(status["parents"][1]["parentRef"], reference);
        let listed = status["parents"].as_array().expect("a list").clone();
        assert_eq!(patch(&standing, Present { listed: &listed, ..present }), None, "it is as it should be");
        let gone = patch(&Standing::Route(Vec::new()), Present { listed: &listed, ..present });
        assert_eq!(gone, Some(json!({"parents": [foreign]})), "a parent that is no more");
    }
}
