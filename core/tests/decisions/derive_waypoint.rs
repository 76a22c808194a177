//! Labels and Gateways → bindings, and when they act.

use ambit_core::derive::{
    AllowedNamespaces, Gateway, Kind, LabelRequirement, LabelValue, Listener, Metadata, Namespace, Object,
    Pod, PolicyAction, ServiceEntry, Standing, Statement, TargetRef, WorkloadEntry,
};
use ambit_core::model::{Waypoint, WaypointDestination, WaypointState};

use crate::build::{service_key, uid};
use crate::objects::{
    Lab, authorization, gateway, key, metadata, namespace, pod, service, service_port, waypoint,
};

const USE: &str = "istio.io/use-waypoint";
const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const FOR: &str = "istio.io/waypoint-for";

fn allowing(name: &str, namespaces: AllowedNamespaces) -> Gateway {
    let listener = Listener { namespaces, ..Listener::hbone("mesh", 15008) };
    Gateway { listeners: vec![listener], ..gateway(name, &[]) }
}

fn labelled_namespace(name: &str, labels: &[(&str, &str)]) -> Object {
    let metadata = Metadata { namespace: String::new(), ..metadata(&format!("/{name}"), labels) };
    Object::Namespace(Namespace { metadata, ..Namespace::default() })
}

fn cart(labels: &[(&str, &str)]) -> Object {
    let base = service("shop/cart", &["10.96.0.1"], &[("app", "cart")], vec![service_port(80, "8080")]);
    Object::Service(ambit_core::derive::Service { metadata: metadata("shop/cart", labels), ..base })
}

fn cart_pod(labels: &[(&str, &str)]) -> Object {
    let labels: Vec<_> = labels.iter().copied().chain([("app", "cart")]).collect();
    Object::Pod(pod("shop/cart-1", &labels, &["10.1.0.1"]))
}

fn of_service(lab: &Lab) -> Option<Waypoint> {
    lab.mesh.service(&service_key("shop/cart")).expect("a service").waypoint.clone()
}

fn of_pod(lab: &Lab) -> Option<Waypoint> {
    lab.mesh.workload(&uid("shop/cart-1")).expect("a workload").waypoint.clone()
}

fn name(waypoint: Option<Waypoint>) -> String {
    waypoint.map_or_else(
        || "none".to_owned(),
        |waypoint| match waypoint.destination {
            WaypointDestination::Hostname(key) => {
                key.hostname.split('.').take(2).collect::<Vec<_>>().join(".")
            }
            WaypointDestination::Address(address) => address.to_string(),
        },
    )
}

#[test]
fn the_nearest_label_binds() {
    let rows: [(&str, &[(&str, &str)], &[(&str, &str)], &[(&str, &str)], &str, &str); 11] = [
        ("nothing", &[], &[], &[], "none", "none"),
        ("the namespace", &[(USE, "wp")], &[], &[], "wp.shop", "none"),
        ("the Service", &[], &[(USE, "wp")], &[], "wp.shop", "none"),
        ("the Service before its namespace", &[(USE, "other")], &[(USE, "wp")], &[], "wp.shop", "none"),
        ("the Service opts out", &[(USE, "wp")], &[(USE, "none")], &[], "none", "none"),
        ("the namespace opts out", &[(USE, "none")], &[], &[], "none", "none"),
        ("another namespace's", &[(USE, "far"), (USE_NAMESPACE, "infra")], &[], &[], "far.infra", "none"),
        (
            "the other label counts with its own",
            &[(USE_NAMESPACE, "infra")],
            &[(USE, "wp")],
            &[],
            "wp.shop",
            "none",
        ),
        ("no such Gateway", &[(USE, "gone")], &[], &[], "none", "none"),
        ("the pod, of a waypoint for workloads", &[], &[], &[(USE, "pods")], "none", "pods.shop"),
        ("a waypoint for all", &[(USE, "both")], &[], &[], "both.shop", "both.shop"),
    ];
    for (row, of_namespace, of_service_labels, of_pod_labels, expected, expected_pod) in rows {
        let lab = Lab::new([
            labelled_namespace("shop", of_namespace),
            cart(of_service_labels),
            cart_pod(of_pod_labels),
            Object::Gateway(gateway("shop/wp", &[])),
            Object::Gateway(gateway("shop/other", &[])),
            Object::Gateway(allowing("infra/far", AllowedNamespaces::All)),
            Object::Gateway(gateway("shop/pods", &[(FOR, "workload")])),
            Object::Gateway(gateway("shop/both", &[(FOR, "all")])),
        ]);
        assert_eq!(name(of_service(&lab)), expected, "{row}: the Service");
        assert_eq!(name(of_pod(&lab)), expected_pod, "{row}: the pod");
    }
}

#[test]
fn gateways_that_are_no_waypoint_for_services_bind_none() {
    let rows = [
        ("another class", Gateway { class: "istio".into(), ..gateway("shop/wp", &[]) }),
        ("for workloads", gateway("shop/wp", &[(FOR, "workload")])),
        ("for nothing", gateway("shop/wp", &[(FOR, "none")])),
    ];
    for (row, gateway) in rows {
        let lab = Lab::new([labelled_namespace("shop", &[(USE, "wp")]), cart(&[]), Object::Gateway(gateway)]);
        assert_eq!(of_service(&lab), None, "{row}");
        let said = lab.conditions(Kind::Service, "shop/cart");
        assert!(said.iter().any(|it| it.message.contains("pass no waypoint")), "{row}: {said:?}");
    }
}

#[test]
fn allowed_routes_say_which_namespaces_may_be_bound() {
    use AllowedNamespaces::{All, None, Same, Selected};
    let label = |key: &str, value| vec![LabelRequirement { key: key.into(), value }];
    let of = |values: &[&str]| values.iter().map(ToString::to_string).collect::<Vec<_>>();
    let name = "kubernetes.io/metadata.name";
    // The namespace shop has the label team=web.
    let rows = [
        ("its own alone", "infra", Same, false),
        ("its own alone, which it is", "shop", Same, true),
        ("all", "infra", All, true),
        ("none", "shop", None, false),
        ("every one", "infra", Selected(vec![]), true),
        ("a label", "infra", Selected(label("team", LabelValue::In(of(&["db", "web"])))), true),
        ("another value", "infra", Selected(label("team", LabelValue::In(of(&["db"])))), false),
        ("another label", "infra", Selected(label("zone", LabelValue::In(of(&["web"])))), false),
        ("not this value", "infra", Selected(label("team", LabelValue::NotIn(of(&["web"])))), false),
        ("not a value that it lacks", "infra", Selected(label("zone", LabelValue::NotIn(of(&["a"])))), true),
        ("a label that is there", "infra", Selected(label("team", LabelValue::Exists)), true),
        ("a label that is not there", "infra", Selected(label("zone", LabelValue::Exists)), false),
        ("no such label", "infra", Selected(label("zone", LabelValue::DoesNotExist)), true),
        ("no such label, which is there", "infra", Selected(label("team", LabelValue::DoesNotExist)), false),
        ("the name", "infra", Selected(label(name, LabelValue::In(of(&["shop"])))), true),
        ("another name", "infra", Selected(label(name, LabelValue::In(of(&["blog"])))), false),
        (
            "two labels, of which one is wrong",
            "infra",
            Selected([label("team", LabelValue::Exists), label("zone", LabelValue::Exists)].concat()),
            false,
        ),
    ];
    for (row, of_gateway, namespaces, expected) in rows {
        let named = [(USE, "wp"), (USE_NAMESPACE, of_gateway)];
        let mut lab = Lab::new([labelled_namespace("shop", &[("team", "web")]), cart(&named)]);
        lab.put([Object::Gateway(allowing(&format!("{of_gateway}/wp"), namespaces))]);
        assert_eq!(of_service(&lab).is_some(), expected, "{row}");
        let said = lab.conditions(Kind::Service, "shop/cart");
        let denied = said.iter().any(|it| it.message.contains("do not admit this namespace"));
        assert_eq!(denied, !expected, "{row}: {said:?}");
    }
}

#[test]
fn whatever_asks_for_a_waypoint_that_does_not_admit_it_is_told() {
    let named = [(USE, "wp"), (USE_NAMESPACE, "infra")];
    let of = |name: &str| metadata(name, &named);
    let entry = ServiceEntry {
        metadata: of("shop/outside"),
        hosts: vec!["outside.example".into()],
        ..ServiceEntry::default()
    };
    let vm = WorkloadEntry { metadata: of("shop/vm"), ..WorkloadEntry::default() };
    let kinds = [
        (Kind::Service, "shop/cart"),
        (Kind::ServiceEntry, "shop/outside"),
        (Kind::WorkloadEntry, "shop/vm"),
        (Kind::Pod, "shop/cart-1"),
    ];
    for (row, namespaces, expected) in [
        ("all", AllowedNamespaces::All, ""),
        ("its own alone", AllowedNamespaces::Same, "do not admit this namespace"),
    ] {
        let gateway =
            Gateway { metadata: metadata("infra/wp", &[(FOR, "all")]), ..allowing("infra/wp", namespaces) };
        let mut lab = Lab::new([cart(&named), cart_pod(&named), Object::Gateway(gateway)]);
        lab.put([Object::ServiceEntry(entry.clone()), Object::WorkloadEntry(vm.clone())]);
        for (kind, name) in kinds {
            let said = lab.conditions(kind, name);
            let is_told = said.iter().any(|it| it.message.contains("pass no waypoint"));
            assert_eq!(is_told, !expected.is_empty(), "{row}, {name}: {said:?}");
            assert!(
                said.iter().any(|it| it.message.contains(expected)) || !is_told,
                "{row}, {name}: {said:?}"
            );
        }
    }
}

#[test]
fn a_binding_follows_allowed_routes_and_labels() {
    let selected = LabelRequirement { key: "team".into(), value: LabelValue::Exists };
    let selected = AllowedNamespaces::Selected(vec![selected]);
    let mut lab = Lab::new([
        labelled_namespace("shop", &[("team", "web")]),
        cart(&[(USE, "wp"), (USE_NAMESPACE, "infra")]),
        cart_pod(&[(USE, "pods"), (USE_NAMESPACE, "infra")]),
        Object::Gateway(allowing("infra/wp", selected.clone())),
        Object::Gateway(Gateway {
            metadata: metadata("infra/pods", &[(FOR, "workload")]),
            ..allowing("infra/pods", selected)
        }),
    ]);
    let bound = |lab: &Lab| (of_service(lab).is_some(), of_pod(lab).is_some());
    assert_eq!(bound(&lab), (true, true));
    lab.put([labelled_namespace("shop", &[])]);
    assert_eq!(bound(&lab), (false, false), "the label is gone");
    lab.put([Object::Gateway(allowing("infra/wp", AllowedNamespaces::All))]);
    assert_eq!(bound(&lab), (true, false), "one Gateway admits all");
}

#[test]
fn listeners_have_conditions_of_their_own() {
    let other = |name: &str, port, protocol: &str| Listener {
        protocol: protocol.into(),
        ..Listener::hbone(name, port)
    };
    let mesh = || Listener::hbone("mesh", 15008);
    let kinds = Listener { kinds: vec!["HTTPRoute".into()], ..mesh() };
    // Of the Gateway `Accepted`, and of its last listener `Accepted`, `Conflicted`, `ResolvedRefs`, and
    // `Programmed` while a ready endpoint serves.
    let good = ["Accepted", "!NoConflicts", "ResolvedRefs", "Programmed"];
    let rows: [(&str, Vec<Listener>, &str, [&str; 4]); 7] = [
        ("one", vec![mesh()], "Accepted", good),
        (
            "of another protocol",
            vec![mesh(), other("web", 80, "HTTP")],
            "ListenersNotValid",
            ["!UnsupportedProtocol", "!NoConflicts", "ResolvedRefs", "!Invalid"],
        ),
        (
            "of another protocol at its port",
            vec![mesh(), other("web", 15008, "HTTP")],
            "ListenersNotValid",
            ["!UnsupportedProtocol", "ProtocolConflict", "ResolvedRefs", "!Invalid"],
        ),
        (
            "a second one",
            vec![mesh(), Listener::hbone("more", 15009)],
            "ListenersNotValid",
            ["!PortUnavailable", "!NoConflicts", "ResolvedRefs", "!Invalid"],
        ),
        (
            "a second one at its port",
            vec![mesh(), Listener::hbone("more", 15008)],
            "ListenersNotValid",
            ["!PortUnavailable", "HostnameConflict", "ResolvedRefs", "!Invalid"],
        ),
        ("the last is the one", vec![other("web", 80, "HTTP"), mesh()], "ListenersNotValid", good),
        (
            "kinds of routes",
            vec![kinds],
            "Accepted",
            ["Accepted", "!NoConflicts", "!InvalidRouteKinds", "Programmed"],
        ),
    ];
    let reason = |statements: &[Statement], kind: &str| {
        let found = statements.iter().find(|it| it.kind == kind).expect("the condition");
        format!("{}{}", if found.holds { "" } else { "!" }, found.reason)
    };
    let told = |lab: &Lab| {
        let Some(Standing::Gateway { conditions, listeners, .. }) =
            lab.world.standings().get(&key(Kind::Gateway, "shop/wp"))
        else {
            panic!("no standing");
        };
        let last = &listeners.last().expect("a listener").conditions;
        let kinds = ["Accepted", "Conflicted", "ResolvedRefs", "Programmed"];
        (reason(conditions, "Accepted"), kinds.map(|kind| reason(last, kind)), listeners.len())
    };
    for (row, listeners, of_gateway, expected) in rows {
        let count = listeners.len();
        let mut lab = Lab::new([Object::Gateway(Gateway { listeners, ..gateway("shop/wp", &[]) })]);
        let (_, [.., programmed], _) = told(&lab);
        assert!(programmed == "!Pending" || programmed == "!Invalid", "{row}: {programmed}");
        lab.put(waypoint("shop/wp", true));
        let (accepted, found, listed) = told(&lab);
        assert_eq!((accepted.as_str(), listed), (of_gateway, count), "{row}");
        assert_eq!(found, expected, "{row}");
    }
}

#[test]
fn a_waypoint_is_not_bound_to_itself() {
    let all =
        [labelled_namespace("shop", &[(USE, "wp")]), Object::Gateway(gateway("shop/wp", &[(FOR, "all")]))];
    let lab = Lab::new(all.into_iter().chain(waypoint("shop/wp", true)));
    assert_eq!(lab.mesh.service(&service_key("shop/wp")).expect("a service").waypoint, None);
    assert_eq!(lab.mesh.workload(&uid("shop/wp-1")).expect("a workload").waypoint, None);
}

fn state(lab: &Lab) -> Option<WaypointState> {
    of_service(lab).map(|waypoint| waypoint.state)
}

#[test]
fn a_binding_acts_from_the_first_ready_endpoint_on() {
    let mut lab = Lab::new([cart(&[(USE, "wp")]), Object::Gateway(gateway("shop/wp", &[]))]);
    assert_eq!(state(&lab), Some(WaypointState::Pending), "it has no Service yet");
    lab.put(waypoint("shop/wp", false));
    assert_eq!(state(&lab), Some(WaypointState::Pending), "its endpoint is not ready");
    let (derived, _) = lab.put(waypoint("shop/wp", true));
    assert_eq!(state(&lab), Some(WaypointState::Programmed));
    assert!(derived.standings.iter().any(|(key, _)| key.name == "wp"), "its status says so");
    lab.put(waypoint("shop/wp", false));
    assert_eq!(state(&lab), Some(WaypointState::Programmed), "never a bypass");
    lab.delete(Kind::Pod, "shop/wp-1");
    lab.delete(Kind::Service, "shop/wp");
    assert_eq!(state(&lab), Some(WaypointState::Programmed), "never a bypass");
    lab.delete(Kind::Gateway, "shop/wp");
    assert_eq!(state(&lab), None, "its end is the binding's");
    lab.put([Object::Gateway(gateway("shop/wp", &[]))]);
    assert_eq!(state(&lab), Some(WaypointState::Pending), "another one begins anew");
}

#[test]
fn a_record_of_earlier_programming_counts() {
    let recorded = Gateway { was_programmed: true, ..gateway("shop/wp", &[]) };
    let lab = Lab::new([cart(&[(USE, "wp")]), Object::Gateway(recorded)]);
    assert_eq!(state(&lab), Some(WaypointState::Programmed), "in its status");

    let mut lab = Lab::new([]);
    lab.world.remember_programmed([key(Kind::Gateway, "shop/wp")]);
    lab.put([cart(&[(USE, "wp")]), Object::Gateway(gateway("shop/wp", &[]))]);
    assert_eq!(state(&lab), Some(WaypointState::Programmed), "in the controller's memory");
}

#[test]
fn an_endpoint_that_peers_would_not_trust_is_none() {
    let ready = |account: &str, port: u16| {
        let mut objects = waypoint("shop/wp", true);
        for object in &mut objects {
            match object {
                Object::Pod(pod) => pod.service_account = account.into(),
                Object::Service(service) => service.ports = vec![service_port(port, "15008")],
                _ => {}
            }
        }
        objects
    };
    let rows = [
        ("as it must be", ready("wp", 15008), None),
        ("another account", ready("default", 15008), Some("service account wp")),
        ("no port for HBONE", ready("wp", 8080), Some("no port 15008")),
    ];
    for (row, objects, missing) in rows {
        let base = [cart(&[(USE, "wp")]), Object::Gateway(gateway("shop/wp", &[]))];
        let lab = Lab::new(base.into_iter().chain(objects));
        let expected = if missing.is_none() { WaypointState::Programmed } else { WaypointState::Pending };
        assert_eq!(state(&lab), Some(expected), "{row}");
        let Some((_, Standing::Gateway { conditions, .. })) =
            lab.world.standings().iter().find(|(key, _)| key.kind == Kind::Gateway)
        else {
            panic!("{row}: no standing");
        };
        let programmed = conditions.iter().find(|it| it.kind == "Programmed").expect("the condition");
        assert_eq!(programmed.holds, missing.is_none(), "{row}");
        assert!(programmed.message.contains(missing.unwrap_or("ready endpoint")), "{row}: {programmed:?}");
        let recorded = conditions.iter().any(|it| it.kind == "ambit.dev/FirstProgrammed");
        assert_eq!(recorded, missing.is_none(), "{row}: the record");
    }
}

#[test]
fn a_policy_that_needs_the_waypoint_has_connections_wait_for_it() {
    let target =
        |kind: &str, name: &str| TargetRef { group: String::new(), kind: kind.into(), name: name.into() };
    let policy = |name: &str, target: TargetRef, action| {
        let mut policy = authorization(name, &[], action, vec![]);
        policy.target_refs = vec![target];
        Object::AuthorizationPolicy(policy)
    };
    let allow = PolicyAction::Allow;
    let rows = [
        ("for the Service", policy("shop/p", target("Service", "cart"), allow), WaypointState::Awaited),
        ("for the waypoint", policy("shop/p", target("Gateway", "wp"), allow), WaypointState::Awaited),
        (
            "for all waypoints",
            policy("ambit-system/p", target("GatewayClass", "ambit-waypoint"), allow),
            WaypointState::Awaited,
        ),
        ("one that cannot be read", policy("shop/p", TargetRef::default(), allow), WaypointState::Awaited),
        ("for another Service", policy("shop/p", target("Service", "api"), allow), WaypointState::Pending),
        ("of another namespace", policy("blog/p", target("Service", "cart"), allow), WaypointState::Pending),
        (
            "that decides nothing",
            policy("shop/p", target("Service", "cart"), PolicyAction::Audit),
            WaypointState::Pending,
        ),
    ];
    for (row, policy, expected) in rows {
        let mut lab = Lab::new([cart(&[(USE, "wp")]), Object::Gateway(gateway("shop/wp", &[]))]);
        lab.put([policy.clone()]);
        assert_eq!(state(&lab), Some(expected), "{row}");
        lab.put(waypoint("shop/wp", true));
        assert_eq!(state(&lab), Some(WaypointState::Programmed), "{row}: it is there");
        let mut other =
            Lab::new([cart(&[(USE, "wp")]), Object::Gateway(gateway("shop/wp", &[])), policy.clone()]);
        let key = policy.key();
        other.delete(key.kind, &format!("{}/{}", key.namespace, key.name));
        assert_eq!(state(&other), Some(WaypointState::Pending), "{row}: nothing needs it any more");
    }
}

#[test]
fn the_binding_names_account_and_port() {
    let mut own = gateway("shop/wp", &[]);
    own.listeners = vec![Listener::hbone("mesh", 16008)];
    own.metadata.annotations.insert("ambit.dev/service-account".into(), "proxy".into());
    let lab = Lab::new([cart(&[(USE, "wp")]), Object::Gateway(own)]);
    let waypoint = of_service(&lab).expect("a binding");
    assert_eq!((waypoint.hbone_port, waypoint.service_account.as_deref()), (16008, Some("proxy")));
}

#[test]
fn require_waypoint_by_label() {
    let switch = "ambit.dev/require-waypoint";
    let rows: [(&str, &[(&str, &str)], &[(&str, &str)], bool); 5] = [
        ("nothing", &[], &[], false),
        ("a value that is not known", &[], &[(switch, "true")], true),
        ("the namespace", &[(switch, "enabled")], &[], true),
        ("the pod", &[], &[(switch, "enabled")], true),
        ("the pod opts out", &[(switch, "enabled")], &[(switch, "disabled")], false),
    ];
    for (row, of_namespace, of_pod, expected) in rows {
        let lab = Lab::new([
            labelled_namespace("shop", of_namespace),
            Object::Pod(Pod { ..pod("shop/cart-1", of_pod, &["10.1.0.1"]) }),
            namespace("blog", ""),
        ]);
        let workload = lab.mesh.workload(&uid("shop/cart-1")).expect("a workload");
        assert_eq!(workload.require_waypoint, expected, "{row}");
    }
}
