//! Events replayed, step by step: which actions follow, and in which order.

use std::time::Duration;

use ambit_core::enrolment::Account;

use super::*;

/// A node's state and a clock that the test moves.
struct Node {
    state: State,
    now: Instant,
}

fn key(name: &str) -> PodKey {
    PodKey { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn labels(mode: &str) -> Labels {
    if mode.is_empty() { Labels::new() } else { Labels::from([(DATAPLANE_MODE.to_owned(), mode.to_owned())]) }
}

fn seen(uid: &str) -> Seen {
    Seen { uid: uid.to_owned(), account: Account::Named, ..Seen::default() }
}

fn annotated(uid: &str) -> Seen {
    Seen { redirected: true, ..seen(uid) }
}

fn enrol(name: &str, uid: &str) -> Action {
    Action::Enrol { key: key(name), uid: uid.to_owned() }
}

fn annotate(name: &str, uid: &str) -> Action {
    Action::Annotate { key: key(name), uid: uid.to_owned() }
}

fn unannotate(name: &str, uid: &str) -> Action {
    Action::Unannotate { key: key(name), uid: uid.to_owned() }
}

fn release(name: &str) -> Action {
    Action::Release { key: key(name) }
}

fn mark(name: &str, uid: &str, reason: Option<&str>) -> Action {
    Action::Mark { key: key(name), uid: uid.to_owned(), reason: reason.map(str::to_owned) }
}

impl Node {
    /// With these pods in a namespace of this mode, when everything has been listed.
    fn listed(mode: &str, pods: &[(&str, Seen)]) -> Self {
        let mut node = Self::empty();
        node.hear(Event::Namespace("shop".to_owned(), labels(mode)));
        for (name, seen) in pods {
            node.hear(Event::Pod(key(name), seen.clone()));
        }
        assert_eq!(node.actions(), [], "no action before the lists are complete");
        node.hear(Event::Listed);
        node
    }

    /// Without pods, after the snapshot.
    fn running(mode: &str) -> Self {
        let mut node = Self::listed(mode, &[]);
        assert_eq!(node.actions(), [Action::Snapshot]);
        node.hear(Event::SnapshotTaken);
        node
    }

    fn empty() -> Self {
        let state = State::new("ambit-system", ["ambit-system".to_owned(), "legacy".to_owned()]);
        Self { state, now: Instant::now() }
    }

    fn hear(&mut self, event: Event) {
        self.state.handle(event, self.now);
    }

    fn actions(&mut self) -> Vec<Action> {
        self.state.actions(self.now)
    }

    fn done(&mut self, name: &str, outcome: Outcome) {
        self.hear(Event::Done(key(name), outcome));
    }

    fn enrolled(&mut self, name: &str, uid: &str) {
        self.done(name, Outcome::Enrolled { uid: uid.to_owned() });
    }

    fn redirected(&mut self, name: &str, uid: &str, on: bool) {
        self.done(name, Outcome::Redirected { uid: uid.to_owned(), on });
    }

    fn mode(&mut self, mode: &str) {
        self.hear(Event::Namespace("shop".to_owned(), labels(mode)));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Enrols a pod of a labelled namespace.
    fn enrol_pod(&mut self, name: &str, uid: &str) {
        self.hear(Event::Pod(key(name), seen(uid)));
        assert_eq!(self.actions(), [enrol(name, uid)]);
        self.enrolled(name, uid);
        assert_eq!(self.actions(), [annotate(name, uid)]);
        self.redirected(name, uid, true);
        assert_eq!(self.actions(), []);
    }
}

#[test]
fn running_pods_are_enrolled_by_a_label_and_released_without_it() {
    let mut node = Node::running("");
    node.hear(Event::Pod(key("web"), seen("1")));
    assert_eq!(node.actions(), []);
    node.mode("ambient");
    assert_eq!(node.actions(), [enrol("web", "1")]);
    assert_eq!(node.actions(), [], "one step at a time");
    node.enrolled("web", "1");
    assert_eq!(node.actions(), [annotate("web", "1")], "only what is enrolled is annotated");
    node.redirected("web", "1", true);
    assert_eq!(node.actions(), []);
    node.mode("");
    assert_eq!(node.actions(), [unannotate("web", "1")]);
    node.redirected("web", "1", false);
    assert_eq!(node.actions(), [], "its peers must hear of the removal first");
    assert_eq!(node.state.next(node.now), Some(node.now + GRACE));
    node.pass(GRACE);
    assert_eq!(node.actions(), [release("web")]);
    node.done("web", Outcome::Released);
    assert_eq!(node.actions(), []);
    assert_eq!(node.state.next(node.now), None);
}

#[test]
fn a_label_that_returns_within_the_grace_keeps_the_pod() {
    let mut node = Node::running("ambit");
    node.enrol_pod("web", "1");
    node.mode("none");
    assert_eq!(node.actions(), [unannotate("web", "1")]);
    node.redirected("web", "1", false);
    node.mode("ambit");
    assert_eq!(node.actions(), [annotate("web", "1")]);
    node.redirected("web", "1", true);
    node.pass(GRACE * 2);
    assert_eq!(node.actions(), []);
}

#[test]
fn the_snapshot_waits_until_every_pod_has_been_named() {
    let pods = [
        ("adopted", annotated("1")),
        ("finished", Seen { finished: true, ..annotated("2") }),
        ("leaves", Seen { labels: labels("none"), ..annotated("3") }),
        ("new", seen("4")),
        ("never", Seen { labels: labels("none"), ..seen("5") }),
    ];
    let mut node = Node::listed("ambient", &pods);
    let keep = Action::Keep { key: key("leaves") };
    assert_eq!(node.actions(), [enrol("adopted", "1"), release("finished"), keep, enrol("new", "4")]);
    node.enrolled("adopted", "1");
    node.done("finished", Outcome::Released);
    node.done("leaves", Outcome::Kept);
    assert_eq!(node.actions(), [unannotate("leaves", "3")], "the snapshot waits for the rest");
    node.done("new", Outcome::NotYet);
    node.redirected("leaves", "3", false);
    assert_eq!(node.actions(), [Action::Snapshot], "a pod that cannot be enrolled yet does not delay it");
    assert!(!node.state.snapshot_taken());
    node.hear(Event::SnapshotFailed);
    assert_eq!(node.actions(), [Action::Snapshot]);
    node.hear(Event::SnapshotTaken);
    assert!(node.state.snapshot_taken());
    node.pass(GRACE);
    assert_eq!(node.actions(), [release("leaves"), enrol("new", "4")]);
}

#[test]
fn the_snapshot_waits_for_an_unreachable_ztunnel() {
    let mut node = Node::listed("ambient", &[("web", seen("1"))]);
    for _ in 0..3 {
        assert_eq!(node.actions(), [enrol("web", "1")]);
        node.done("web", Outcome::Failed);
        assert_eq!(node.actions(), []);
        node.pass(Duration::from_secs(10));
    }
    assert_eq!(node.actions(), [enrol("web", "1")]);
    node.enrolled("web", "1");
    assert_eq!(node.actions(), [annotate("web", "1"), Action::Snapshot]);
}

#[test]
fn pauses_double_and_end_with_the_next_event() {
    let mut node = Node::running("ambient");
    node.hear(Event::Pod(key("web"), seen("1")));
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert_eq!(node.actions(), [enrol("web", "1")]);
        node.done("web", Outcome::NotYet);
        assert_eq!(node.actions(), []);
        let next = node.state.next(node.now).unwrap();
        pauses.push((next - node.now).as_millis());
        node.now = next;
    }
    assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
    assert_eq!(node.actions(), [enrol("web", "1")]);
    node.done("web", Outcome::NotYet);
    // Its sandbox now exists, and its object has changed.
    node.hear(Event::Pod(key("web"), Seen { not_captured: Some("x".to_owned()), ..seen("1") }));
    assert_eq!(node.actions(), [enrol("web", "1")]);
}

/// A pod that ends has no process any more, but an earlier agent may have enrolled it. Without a release it
/// would be named to every later ztunnel, which would wait for it.
#[test]
fn a_pod_that_was_not_enrolled_yet_is_released_too() {
    type Row = (&'static str, fn(&mut Node));
    let rows: [Row; 2] = [
        ("deleted", |node| node.hear(Event::PodGone(key("web")))),
        ("finished", |node| node.hear(Event::Pod(key("web"), Seen { finished: true, ..seen("1") }))),
    ];
    for (name, goes) in rows {
        let mut node = Node::running("ambient");
        node.hear(Event::Pod(key("web"), seen("1")));
        assert_eq!(node.actions(), [enrol("web", "1")], "{name}");
        node.done("web", Outcome::NotYet);
        goes(&mut node);
        assert_eq!(node.actions(), [release("web")], "{name}");
        node.done("web", Outcome::Released);
        assert_eq!(node.actions(), [], "{name}");
    }
}

#[test]
fn a_deleted_or_finished_pod_is_released_at_once() {
    type Row = (&'static str, fn(&mut Node));
    let rows: [Row; 2] = [
        ("deleted", |node| node.hear(Event::PodGone(key("web")))),
        ("finished", |node| {
            node.hear(Event::Pod(key("web"), Seen { finished: true, ..annotated("1") }));
        }),
    ];
    for (name, goes) in rows {
        let mut node = Node::running("ambient");
        node.enrol_pod("web", "1");
        goes(&mut node);
        assert_eq!(node.actions(), [release("web")], "{name}");
        node.done("web", Outcome::Failed);
        node.pass(Duration::from_millis(250));
        assert_eq!(node.actions(), [release("web")], "{name}: again");
        node.done("web", Outcome::Released);
        assert_eq!(node.actions(), [], "{name}");
    }
}

#[test]
fn a_deleted_pod_that_was_never_enrolled_needs_no_action() {
    let mut node = Node::running("");
    node.hear(Event::Pod(key("web"), seen("1")));
    node.hear(Event::PodGone(key("web")));
    assert_eq!(node.actions(), []);
    assert_eq!(node.state.counts(), Counts::default());
}

#[test]
fn another_pod_of_the_same_name_is_enrolled_again() {
    let mut node = Node::running("ambient");
    node.enrol_pod("db-0", "1");
    // The deletion of the first was missed.
    node.hear(Event::Pod(key("db-0"), seen("2")));
    assert_eq!(node.actions(), [enrol("db-0", "2")]);
    node.enrolled("db-0", "2");
    assert_eq!(node.actions(), [annotate("db-0", "2")]);
    node.redirected("db-0", "2", true);
    // The next one should not be in the mesh: its predecessor is released at once.
    node.hear(Event::Pod(key("db-0"), Seen { labels: labels("none"), ..seen("3") }));
    assert_eq!(node.actions(), [release("db-0")]);
}

#[test]
fn outcomes_of_an_earlier_pod_of_the_same_name_do_not_count() {
    let mut node = Node::running("ambient");
    node.hear(Event::Pod(key("db-0"), seen("1")));
    assert_eq!(node.actions(), [enrol("db-0", "1")]);
    node.hear(Event::Pod(key("db-0"), seen("2")));
    assert_eq!(node.actions(), [], "the first step is still in progress");
    node.enrolled("db-0", "1");
    assert_eq!(node.actions(), [enrol("db-0", "2")]);
    node.enrolled("db-0", "2");
    assert_eq!(node.actions(), [annotate("db-0", "2")]);
    node.redirected("db-0", "1", true);
    assert_eq!(node.actions(), [annotate("db-0", "2")], "that was the other's annotation");
}

#[test]
fn pods_that_cannot_be_captured_are_annotated_with_the_reason() {
    let host = Seen { host_network: true, labels: labels("ambient"), ..seen("1") };
    let reason = "host network: its connections cannot be distinguished from the node's";
    let marked = Seen { not_captured: Some(reason.to_owned()), ..host.clone() };
    let rows = [
        ("host network", "", host.clone(), vec![mark("p", "1", Some(reason))]),
        ("already annotated", "", marked.clone(), vec![]),
        (
            "annotated, but no longer labelled",
            "",
            Seen { labels: Labels::new(), ..marked },
            vec![mark("p", "1", None)],
        ),
        (
            "a static pod",
            "ambient",
            Seen { account: Account::Static, ..seen("1") },
            vec![mark("p", "1", Some("static pod: it has no service account, so it has no identity"))],
        ),
        (
            "without a service account",
            "ambient",
            Seen { account: Account::Missing, ..seen("1") },
            vec![mark("p", "1", Some("it has no service account, so it has no identity"))],
        ),
        ("host network, not labelled", "", Seen { host_network: true, ..seen("1") }, vec![]),
    ];
    for (name, mode, seen, expected) in rows {
        let mut node = Node::running(mode);
        node.hear(Event::Pod(key("p"), seen));
        assert_eq!(node.actions(), expected, "{name}");
    }
}

#[test]
fn excluded_ports_of_captured_pods_are_annotated() {
    let text = |text: &str| Some(text.to_owned());
    let (ports, others) = ("inbound ports 9090; outbound ports 3306", "outbound ports 25");
    let mut node = Node::running("ambient");
    node.enrol_pod("web", "1");
    let rows = [
        ("it excludes ports", text(ports), None, vec![mark("web", "1", Some(ports))]),
        ("already annotated", text(ports), text(ports), vec![]),
        ("other ports", text(others), text(ports), vec![mark("web", "1", Some(others))]),
        ("no longer any", None, text(others), vec![mark("web", "1", None)]),
        ("none, and no annotation", None, None, vec![]),
    ];
    for (name, excluded, not_captured, expected) in rows {
        node.hear(Event::Pod(key("web"), Seen { not_captured, excluded, ..annotated("1") }));
        assert_eq!(node.actions(), expected, "{name}");
        if let [Action::Mark { reason, uid, .. }] = &expected[..] {
            node.done("web", Outcome::Marked { uid: uid.clone(), reason: reason.clone() });
            assert_eq!(node.actions(), [], "{name}: once");
        }
    }
    assert_eq!(node.state.counts(), Counts { pods: 1, desired: 1, enrolled: 1, not_captured: 0 });

    // Its label is removed: nothing of it is captured any more, and the annotation of its ports goes too.
    let leaving =
        Seen { excluded: text(ports), not_captured: text(ports), labels: labels("none"), ..annotated("1") };
    node.hear(Event::Pod(key("web"), leaving));
    assert_eq!(node.actions(), [unannotate("web", "1")]);
    node.redirected("web", "1", false);
    assert_eq!(node.actions(), [mark("web", "1", None)]);
}

#[test]
fn pods_of_excluded_namespaces_are_not_enrolled() {
    for namespace in ["legacy", "ambit-system"] {
        let mut node = Node::running("");
        let key = PodKey { namespace: namespace.to_owned(), name: "p".to_owned() };
        node.hear(Event::Namespace(namespace.to_owned(), labels("ambient")));
        node.hear(Event::Pod(key.clone(), seen("1")));
        let actions = node.actions();
        assert!(matches!(&actions[..], [Action::Mark { reason: Some(_), .. }]), "{namespace}: {actions:?}");
        assert!(!node.state.desires(&key), "{namespace}");
    }
}

#[test]
fn pods_of_unknown_namespaces_are_left_unchanged() {
    let mut node = Node::running("");
    let key = PodKey { namespace: "fresh".to_owned(), name: "web".to_owned() };
    // The plugin has read the label and enrolled the pod; the watch of namespaces lags.
    node.hear(Event::Pod(key.clone(), annotated("1")));
    assert_eq!(node.actions(), []);
    node.hear(Event::Namespace("fresh".to_owned(), labels("ambient")));
    assert_eq!(node.actions(), [Action::Enrol { key, uid: "1".to_owned() }]);
}

#[test]
fn removed_annotations_are_written_again() {
    let mut node = Node::running("ambient");
    node.enrol_pod("web", "1");
    node.hear(Event::Pod(key("web"), seen("1")));
    assert_eq!(node.actions(), [annotate("web", "1")]);
    node.redirected("web", "1", true);
    let stale = Seen { not_captured: Some("was on the host's network".to_owned()), ..annotated("1") };
    node.hear(Event::Pod(key("web"), stale));
    assert_eq!(node.actions(), [mark("web", "1", None)]);
}

#[test]
fn counts_by_state() {
    let mut node = Node::running("ambient");
    node.enrol_pod("web", "1");
    node.hear(Event::Pod(key("new"), seen("2")));
    node.hear(Event::Pod(key("host"), Seen { host_network: true, ..seen("3") }));
    node.hear(Event::Pod(key("out"), Seen { labels: labels("none"), ..seen("4") }));
    assert_eq!(node.state.counts(), Counts { pods: 4, desired: 2, enrolled: 1, not_captured: 1 });
}
