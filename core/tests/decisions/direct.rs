//! Which verdicts the kernel may cache, and which become stale.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::direct::{Refusal, Sources, affected, may_stay, verdict};
use ambit_core::mesh::{Change, Mesh, Touched};
use ambit_core::model::{
    Action, Authorization, Identity, NetworkMode, PolicyKey, Scope, TunnelProtocol, Waypoint,
    WaypointDestination, Workload, WorkloadUid,
};
use ambit_core::policy::{Request, authorize};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::build::{With as _, allow, deny, ip, m, mesh, only, pod, policy_key, socket, uid};

fn web() -> Workload {
    pod("shop/web", &["10.1.0.1"])
}

fn cart() -> Workload {
    pod("shop/cart", &["10.1.0.2"])
}

fn with(mut workload: Workload, change: impl FnOnce(&mut Workload)) -> Workload {
    change(&mut workload);
    workload
}

#[test]
fn cacheable_verdicts() {
    let off = |w| with(w, |w| w.direct = false);
    let waypoint = Waypoint::new(WaypointDestination::Address(ip("10.1.0.9")));
    let from_web = m! { principals: ["cluster.local/ns/shop/sa/default"] };
    let from_there = m! { source_ips: ["10.1.0.0/16"] };
    let dry = |mut policy: Authorization| {
        policy.dry_run = true;
        policy
    };
    let rows: Vec<(&str, Workload, Workload, Vec<Authorization>, &str, Option<&str>)> = vec![
        ("no policy", web(), cart(), vec![], "10.1.0.2:80", None),
        ("allowed", web(), cart(), vec![allow("shop/a", vec![only(from_web.clone())])], "10.1.0.2:80", None),
        ("denied", web(), cart(), vec![deny("shop/a", vec![only(from_web)])], "10.1.0.2:80", Some("denies")),
        (
            "by its address",
            web(),
            cart(),
            vec![allow("shop/a", vec![only(from_there)])],
            "10.1.0.2:80",
            Some("one connection only"),
        ),
        (
            "a dry run wants to see each",
            web(),
            cart(),
            vec![dry(deny("shop/a", vec![]))],
            "10.1.0.2:80",
            Some("one connection only"),
        ),
        ("another's address", web(), cart(), vec![], "10.1.0.3:80", Some("not an address")),
        ("the mesh's own port", web(), cart(), vec![], "10.1.0.2:15008", Some("reserved")),
        ("off at the source", off(web()), cart(), vec![], "10.1.0.2:80", Some("web has the direct path")),
        (
            "off at the destination",
            web(),
            off(cart()),
            vec![],
            "10.1.0.2:80",
            Some("cart has the direct path"),
        ),
        (
            "TLS on the node",
            web(),
            with(cart(), |w| w.same_node_tls = true),
            vec![],
            "10.1.0.2:80",
            Some("demands TLS"),
        ),
        (
            "a waypoint stands between",
            web(),
            with(cart(), |w| w.waypoint = Some(waypoint)),
            vec![],
            "10.1.0.2:80",
            Some("waypoint"),
        ),
        (
            "the destination is outside the mesh",
            web(),
            with(cart(), |w| w.protocol = TunnelProtocol::None),
            vec![],
            "10.1.0.2:80",
            Some("unknown"),
        ),
        (
            "another trust domain",
            with(web(), |w| w.trust_domain = "elsewhere.example".parse().expect("a domain")),
            cart(),
            vec![],
            "10.1.0.2:80",
            Some("one connection only"),
        ),
        (
            "one that is as good",
            with(web(), |w| w.trust_domain = "elsewhere.example".parse().expect("a domain")),
            with(cart(), |w| {
                w.trust_domain_aliases = ["elsewhere.example".parse().expect("a domain")].into();
            }),
            vec![],
            "10.1.0.2:80",
            None,
        ),
        (
            "the source shares its node's address",
            with(web(), |w| w.network_mode = NetworkMode::HostNetwork),
            cart(),
            vec![],
            "10.1.0.2:80",
            Some("unknown"),
        ),
        (
            "a policy is still to come",
            web(),
            with(cart(), |w| w.policies = vec![policy_key("shop/late")]),
            vec![],
            "10.1.0.2:80",
            Some("not known"),
        ),
        (
            "a family the source does not have",
            web(),
            with(cart(), |w| w.addresses.push(ip("fd00::2"))),
            vec![],
            "[fd00::2]:80",
            Some("one connection only"),
        ),
    ];
    for (name, source, destination, policies, address, expected) in rows {
        let mesh = mesh([source, destination], [], policies);
        let said = verdict(&mesh, &uid("shop/web"), &uid("shop/cart"), socket(address));
        match (expected, said) {
            (None, Ok(())) => {}
            (Some(why), Err(refusal)) => assert!(refusal.to_string().contains(why), "{name}: {refusal}"),
            (expected, said) => panic!("{name}: {said:?}, not {expected:?}"),
        }
    }
    let claimed = mesh([web(), cart(), pod("shop/a-twin", &["10.1.0.2"])], [], []);
    let said = verdict(&claimed, &uid("shop/web"), &uid("shop/cart"), socket("10.1.0.2:80"));
    assert!(matches!(said, Err(Refusal::Denied(_))), "whose address it is must be certain: {said:?}");
}

#[test]
fn open_connections_stay_unless_denied_or_disabled() {
    let deny_web = || deny("shop/a", vec![only(m! { principals: ["cluster.local/ns/shop/sa/default"] })]);
    let from_there = allow("shop/a", vec![only(m! { source_ips: ["10.1.0.1"] })]);
    let rows: Vec<(&str, Workload, Vec<Workload>, Vec<Authorization>, Option<&str>)> = vec![
        ("nothing changed", web(), vec![web(), cart()], vec![], None),
        ("a policy by address, and it is the one", web(), vec![web(), cart()], vec![from_there], None),
        ("the source leaves before it ends", web(), vec![cart()], vec![], None),
        ("the destination has left", web(), vec![web()], vec![], Some("cart is unknown")),
        ("forbidden", web(), vec![web(), cart()], vec![deny_web()], Some("denies")),
        ("forbidden to one that leaves", web(), vec![cart()], vec![deny_web()], Some("denies")),
        (
            "switched off at the destination",
            web(),
            vec![web(), with(cart(), |w| w.direct = false)],
            vec![],
            Some("cart has the direct path switched off"),
        ),
        (
            "switched off at the source",
            with(web(), |w| w.direct = false),
            vec![cart()],
            vec![],
            Some("web has the direct path switched off"),
        ),
        (
            "TLS demanded",
            web(),
            vec![web(), with(cart(), |w| w.same_node_tls = true)],
            vec![],
            Some("demands TLS"),
        ),
    ];
    for (name, source, workloads, policies, expected) in rows {
        let mesh = mesh(workloads, [], policies);
        let said =
            may_stay(&mesh, &source, &uid("shop/cart"), socket("10.1.0.1:4000"), socket("10.1.0.2:80"));
        match (expected, said) {
            (None, Ok(())) => {}
            (Some(why), Err(refusal)) => assert!(refusal.to_string().contains(why), "{name}: {refusal}"),
            (expected, said) => panic!("{name}: {said:?}, not {expected:?}"),
        }
    }
}

#[test]
fn a_change_affects_destinations_whose_verdicts_it_may_change() {
    let api = || pod("blog/api", &["10.1.0.3"]);
    let selected = || with(cart(), |w| w.policies = vec![policy_key("shop/mine")]);
    let scoped = |scope, name| Authorization { scope, ..deny(name, vec![]) };
    let put = |workload| Change::PutWorkload(Arc::new(workload));
    let policy = |policy| Change::PutPolicy(Arc::new(policy));
    let rows: Vec<(&str, Workload, Change, &[&str])> = vec![
        (
            "mesh-wide",
            cart(),
            policy(scoped(Scope::Global, "root/p")),
            &["blog/api", "shop/cart", "shop/web"],
        ),
        ("a namespace's", cart(), policy(scoped(Scope::Namespace, "shop/p")), &["shop/cart", "shop/web"]),
        ("named", selected(), policy(scoped(Scope::WorkloadSelector, "shop/mine")), &["shop/cart"]),
        ("named by no workload", cart(), policy(scoped(Scope::WorkloadSelector, "shop/mine")), &[]),
        (
            "removed before it was put",
            selected(),
            Change::RemovePolicy(policy_key("shop/mine")),
            &["shop/cart"],
        ),
        ("it names another policy", cart(), put(selected()), &["shop/cart"]),
        ("it leaves", cart(), Change::RemoveWorkload(uid("shop/cart")), &["shop/cart"]),
        ("it is switched off", cart(), put(with(cart(), |w| w.direct = false)), &["shop/cart"]),
        ("it demands TLS", cart(), put(with(cart(), |w| w.same_node_tls = true)), &["shop/cart"]),
        (
            "it excludes a port",
            cart(),
            put(with(cart(), |w| w.excluded_ports.inbound = [9090].into())),
            &["shop/cart"],
        ),
        (
            "what it leaves alone itself is no answer",
            cart(),
            put(with(cart(), |w| w.excluded_ports.outbound = [9090].into())),
            &[],
        ),
        ("its address is claimed", cart(), put(pod("shop/a-twin", &["10.1.0.2"])), &["shop/cart"]),
        (
            "readiness is no answer",
            cart(),
            put(with(cart(), |w| w.health = ambit_core::model::Health::Unhealthy)),
            &[],
        ),
        ("nor is a stranger", cart(), put(pod("shop/new", &["10.9.0.1"])), &[]),
    ];
    for (name, cart, change, expected) in rows {
        let before = mesh([web(), cart, api()], [], []);
        let mut after = before.clone();
        let touched = after.apply([change]);
        let local = [uid("shop/web"), uid("shop/cart"), uid("blog/api")];
        let expected: BTreeSet<_> = expected.iter().map(|name| uid(name)).collect();
        assert_eq!(affected(&before, &after, &touched, &local), expected, "{name}");
    }
    let before = mesh([web(), cart()], [], [deny("shop/p", vec![])]);
    let mut after = before.clone();
    let touched = after.apply([policy(scoped(Scope::WorkloadSelector, "shop/p"))]);
    let both = BTreeSet::from([uid("shop/cart"), uid("shop/web")]);
    assert_eq!(affected(&before, &after, &touched, &both), both, "a policy that leaves its scope");
}

#[test]
fn sources_change_only_with_their_attributes() {
    let local = [uid("shop/web")];
    let mut sources = Sources::default();
    let mut follow = |workloads: Vec<Workload>| sources.follow(&mesh(workloads, [], []), &local);
    assert!(!follow(vec![]), "not known yet");
    assert!(!follow(vec![web()]), "known");
    assert!(!follow(vec![with(web(), |w| w.health = ambit_core::model::Health::Unhealthy)]));
    assert!(!follow(vec![]), "it leaves the mesh before it ends");
    assert!(!follow(vec![web()]), "it is back");
    assert!(follow(vec![with(web(), |w| w.service_account = "other".into())]), "another identity");
    assert!(!follow(vec![]));
    assert!(follow(vec![web()]), "another identity after an absence");
    assert!(follow(vec![with(web(), |w| w.direct = false)]), "switched off");
    let outside = |w: &mut Workload| w.protocol = TunnelProtocol::None;
    assert!(follow(vec![with(web(), outside)]), "it leaves the mesh");
    assert!(!follow(vec![web()]), "it joins the mesh: it had no verdicts");
    follow(vec![with(web(), outside)]);
    assert!(follow(vec![with(web(), |w| w.service_account = "other".into())]), "it joins as another");
    sources.forget(&uid("shop/web"));
    assert!(!sources.follow(&mesh([web()], [], []), &local), "a new enrolment has no verdicts yet");
}

// The property: in any interleaving, a cached verdict of the current generation equals the newest policy's.

const PODS: [&str; 3] = ["shop/web", "shop/cart", "blog/api"];

/// A step of one of the concurrent actors.
#[derive(Clone, Debug)]
enum Step {
    /// The daemon takes changes in: publishes the new mesh…
    Publish(Vec<Change>),
    /// …and then makes the affected verdicts stale.
    Bump,
    /// One of two deciders reads the generation of a destination,
    ReadGeneration { decider: usize, source: usize, destination: usize },
    /// then loads the mesh and decides,
    Decide { decider: usize },
    /// then caches the verdict, if it permits.
    Write { decider: usize },
}

#[derive(Clone, Debug)]
struct Decision {
    source: WorkloadUid,
    destination: WorkloadUid,
    address: SocketAddr,
    generation: u64,
    permitted: Option<bool>,
}

/// The kernel's maps and the daemon, without the sockets.
#[derive(Default)]
struct Node {
    mesh: Mesh,
    pending: Option<(Mesh, Touched)>,
    sources: Sources,
    identities: BTreeMap<WorkloadUid, Identity>,
    generations: BTreeMap<WorkloadUid, u64>,
    verdicts: BTreeMap<(WorkloadUid, SocketAddr), (WorkloadUid, u64)>,
    deciders: [Option<Decision>; 2],
}

impl Node {
    fn take(&mut self, step: Step) {
        match step {
            Step::Publish(changes) => {
                self.bump();
                let before = self.mesh.clone();
                let touched = self.mesh.apply(changes);
                self.pending = Some((before, touched));
                let known = self.mesh.workloads();
                self.identities.extend(known.map(|workload| (workload.uid.clone(), workload.identity())));
            }
            Step::Bump => self.bump(),
            Step::ReadGeneration { decider, source, destination } => {
                let (source, destination) = (uid(PODS[source]), uid(PODS[destination]));
                let generation = self.generations.get(&destination).copied().unwrap_or(1);
                let address = SocketAddr::new(address_of(&destination), 80);
                self.deciders[decider] =
                    Some(Decision { source, destination, address, generation, permitted: None });
            }
            Step::Decide { decider } => {
                if let Some(decision) = &mut self.deciders[decider] {
                    let said = verdict(&self.mesh, &decision.source, &decision.destination, decision.address);
                    decision.permitted = Some(said.is_ok());
                }
            }
            Step::Write { decider } => {
                if let Some(Decision { source, destination, address, generation, permitted: Some(true) }) =
                    self.deciders[decider].take()
                {
                    self.verdicts.insert((source, address), (destination, generation));
                }
            }
        }
    }

    fn bump(&mut self) {
        let Some((before, touched)) = self.pending.take() else { return };
        let local: Vec<_> = PODS.iter().map(|name| uid(name)).collect();
        let mut stale = affected(&before, &self.mesh, &touched, &local);
        if self.sources.follow(&self.mesh, &local) {
            stale.extend(local);
        }
        for destination in stale {
            *self.generations.entry(destination).or_insert(1) += 1;
        }
    }

    /// Current verdicts that the newest policy denies.
    fn wrong(&self) -> Vec<String> {
        if self.pending.is_some() {
            return Vec::new();
        }
        let current = |destination| self.generations.get(destination).copied().unwrap_or(1);
        let valid = self.verdicts.iter().filter(|(_, (to, generation))| current(to) == *generation);
        let forbidden = valid.filter(|((from, address), (to, _))| {
            let identity = &self.identities[from];
            let peer = Request { identity: Some(identity), source: address_of(from), destination: *address };
            let open = |uid| self.mesh.workload(uid).is_none_or(|w| w.direct);
            let tls = self.mesh.workload(to).is_some_and(|w| w.same_node_tls);
            authorize(&self.mesh, to, &peer).outcome.is_err() || !open(from) || !open(to) || tls
        });
        forbidden.map(|(key, value)| format!("{key:?} → {value:?}")).collect()
    }
}

fn address_of(pod: &WorkloadUid) -> std::net::IpAddr {
    let index = PODS.iter().position(|name| uid(name) == *pod).expect("one of the pods");
    ip(&format!("10.1.0.{}", index + 1))
}

fn workloads() -> impl Strategy<Value = Workload> {
    let names = select(vec!["shop/p0", "blog/p1"]);
    let flags = (
        any::<bool>(),
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.8),
    );
    (0..PODS.len(), vec(names, 0..2), flags).prop_map(
        |(index, policies, (other, direct, tls, moved, announced))| {
            with(pod(PODS[index], &[]), |w| {
                w.addresses = vec![ip(&format!("10.1.0.{}", if moved { 9 } else { index + 1 }))];
                w.policies = policies.iter().map(|name| policy_key(name)).collect();
                w.service_account = if other { "other".into() } else { "default".into() };
                w.direct = direct;
                w.same_node_tls = tls;
                w.protocol = if announced { TunnelProtocol::Hbone } else { TunnelProtocol::None };
            })
        },
    )
}

fn policies() -> impl Strategy<Value = Authorization> {
    let rules = prop_oneof![
        Just(vec![]),
        Just(vec![only(m! { principals: ["cluster.local/ns/shop/sa/default"] })]),
        Just(vec![only(m! { namespaces: ["shop"] })]),
        Just(vec![only(m! { not_principals: ["*"] })]),
        Just(vec![only(m! { source_ips: ["10.1.0.1"] })]),
        Just(vec![only(m! { destination_ports: ["80"] })]),
    ];
    let scope = select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let action = select(vec![Action::Allow, Action::Deny]);
    (keys(), scope, action, rules, prop::bool::weighted(0.1))
        .prop_map(|(key, scope, action, rules, dry_run)| Authorization { key, scope, action, rules, dry_run })
}

fn keys() -> impl Strategy<Value = PolicyKey> {
    select(vec!["shop/p0", "blog/p1", "root/p2"]).prop_map(policy_key)
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => workloads().prop_map(|workload| Change::PutWorkload(Arc::new(workload))),
        1 => (0..PODS.len()).prop_map(|index| Change::RemoveWorkload(uid(PODS[index]))),
        3 => policies().prop_map(|policy| Change::PutPolicy(Arc::new(policy))),
        2 => keys().prop_map(Change::RemovePolicy),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pods = 0..PODS.len();
    let step = prop_oneof![
        3 => vec(changes(), 1..3).prop_map(Step::Publish),
        3 => Just(Step::Bump),
        4 => (0..2_usize, pods.clone(), pods)
            .prop_map(|(decider, source, destination)| Step::ReadGeneration { decider, source, destination }),
        4 => (0..2_usize).prop_map(|decider| Step::Decide { decider }),
        4 => (0..2_usize).prop_map(|decider| Step::Write { decider }),
    ];
    vec(step, 1..80)
}

/// All workloads known and nothing denied, so that most verdicts permit.
fn permissive() -> Node {
    let mut node = Node::default();
    let known = PODS.iter().zip(1..).map(|(name, index)| pod(name, &[&format!("10.1.0.{index}")]));
    node.take(Step::Publish(known.map(|workload| Change::PutWorkload(Arc::new(workload))).collect()));
    node.take(Step::Bump);
    node
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_current_verdict_never_contradicts_the_newest_policy(steps in steps()) {
        let mut node = permissive();
        for step in steps {
            node.take(step);
            prop_assert_eq!(node.wrong(), Vec::<String>::new());
        }
    }
}

#[test]
fn model_check_detects_broken_invariant() {
    let mut node = permissive();
    node.take(Step::ReadGeneration { decider: 0, source: 0, destination: 1 });
    node.take(Step::Decide { decider: 0 });
    node.take(Step::Write { decider: 0 });
    assert_eq!(node.verdicts.len(), 1, "a verdict is cached");
    // A change without new generations.
    node.mesh.apply([Change::PutPolicy(Arc::new(deny("shop/p0", vec![only(m! { namespaces: ["shop"] })])))]);
    assert_eq!(node.wrong().len(), 1);
}
