//! Rotations as sequences of steps over time.

use ambit_core::model::TrustDomain;

use super::*;

const PACE: Pace = Pace { trust_wait: Duration::from_mins(5), longest: Duration::from_hours(24) };

fn make() -> Result<Material, Error> {
    Material::make(&TrustDomain::default(), at(0))
}

fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_hours(500_000) + Duration::from_secs(second)
}

/// A CA over time, with what the leader has written.
struct Timeline {
    state: State,
    published: Option<String>,
    request: Option<&'static str>,
    own: Option<Material>,
}

impl Timeline {
    fn begin(own: Option<Material>) -> Self {
        let facts = Facts { now: at(0), request: None, own: own.as_ref(), published: None, can_sign: true };
        let state = State::first(make, &facts).unwrap();
        let mut timeline = Self { state, published: None, request: None, own };
        timeline.publish();
        timeline
    }

    fn publish(&mut self) {
        self.published = Some(self.state.bundle());
    }

    /// Takes the steps that are due at a second, without writing the bundle; whether there were any.
    fn advance_to(&mut self, second: u64) -> bool {
        let mut moved = false;
        loop {
            let facts = Facts {
                now: at(second),
                request: self.request,
                // One that has expired is not passed on.
                own: self.own.as_ref().filter(|own| own.not_after().unwrap() > at(second)),
                published: self.published.as_deref(),
                can_sign: self.state.signing().not_after().unwrap() > at(second),
            };
            let domain = TrustDomain::default();
            let make = || Material::make(&domain, at(second));
            let next = self.state.step(&facts, PACE, make, |material| material.renewed(&domain, at(second)));
            match next.unwrap() {
                Some(next) => (self.state, moved) = (next, true),
                None => return moved,
            }
        }
    }

    fn roots(&self) -> usize {
        self.state.bundle().matches("BEGIN CERTIFICATE").count()
    }

    /// Whether a peer with this bundle accepts what a CA signs.
    fn accepts(bundle: &str, material: &Material) -> bool {
        material.roots().iter().any(|root| bundle.contains(root.as_str()))
    }
}

#[test]
fn no_step_is_due_without_a_request() {
    let mut timeline = Timeline::begin(None);
    assert!(!timeline.advance_to(1) && !timeline.advance_to(1_000_000));
    assert_eq!(timeline.roots(), 1);
    assert_eq!(timeline.state.signing(), timeline.state.serving());
}

#[test]
fn a_requested_root_is_trusted_before_it_signs_and_the_old_one_until_its_certificates_expire() {
    let mut timeline = Timeline::begin(None);
    let (old, old_bundle) = (timeline.state.signing().clone(), timeline.state.bundle());
    timeline.request = Some("monday");
    assert!(timeline.advance_to(10));
    assert_eq!((timeline.roots(), timeline.state.signing()), (2, &old));
    // The wait begins when the bundle is written, not before.
    assert!(!timeline.advance_to(10_000), "not published");
    timeline.publish();
    assert!(timeline.advance_to(10_001));
    assert!(!timeline.advance_to(10_300));
    assert_eq!(timeline.state.due(PACE), Some(at(10_301)));
    assert_eq!(timeline.state.signing(), &old);
    assert!(timeline.advance_to(10_301));
    let new = timeline.state.signing().clone();
    assert_ne!(new, old);
    // The controller's certificate is accepted with the old bundle and with the new one.
    assert!(Timeline::accepts(&old_bundle, timeline.state.serving()));
    assert!(Timeline::accepts(&timeline.state.bundle(), timeline.state.serving()));
    assert!(Timeline::accepts(timeline.published.as_deref().unwrap(), &new));
    assert_eq!(timeline.roots(), 2);
    // A day and a margin later the old root is removed; every bundle since then has the new one.
    let end = 10_301 + 24 * 3600 + 600;
    assert!(!timeline.advance_to(end - 1));
    assert_eq!(timeline.state.due(PACE), Some(at(end)));
    assert!(timeline.advance_to(end));
    assert_eq!((timeline.roots(), timeline.state.serving()), (1, &new));
    assert!(!timeline.advance_to(end + 1_000), "the request is granted once");
}

#[test]
fn a_second_request_restarts_the_wait() {
    let mut timeline = Timeline::begin(None);
    timeline.request = Some("one");
    timeline.advance_to(0);
    timeline.publish();
    timeline.advance_to(1);
    let first = timeline.state.next.clone().unwrap().material;
    timeline.request = Some("two");
    timeline.advance_to(200);
    let second = timeline.state.next.clone().unwrap();
    assert_ne!(second.material, first);
    assert_eq!(second.trusted_since, None);
    assert!(!timeline.advance_to(500), "its bundle is not written yet");
    timeline.publish();
    timeline.advance_to(501);
    timeline.advance_to(801);
    assert_eq!(timeline.state.signing(), &second.material);
    // A third, while the first root is still trusted: all former roots are.
    timeline.request = Some("three");
    timeline.advance_to(900);
    timeline.publish();
    timeline.advance_to(901);
    timeline.advance_to(1_201);
    assert_eq!((timeline.roots(), timeline.state.retired.len()), (3, 2));
    assert_eq!(timeline.state.serving(), &timeline.state.retired[0].material, "the oldest");
}

#[test]
fn a_user_ca_is_trusted_before_it_signs() {
    let own = make().unwrap();
    let mut timeline = Timeline::begin(Some(own.clone()));
    assert_eq!(timeline.state.signing(), &own);
    timeline.request = Some("monday");
    assert!(timeline.advance_to(1), "the request is recorded");
    assert_eq!((timeline.roots(), timeline.state.signing()), (1, &own), "but creates no root");
    // Another intermediate under the same root signs at once.
    let renewed = own.renewed(&TrustDomain::default(), at(300 * 24 * 3600)).unwrap().unwrap();
    timeline.own = Some(renewed.clone());
    assert!(timeline.advance_to(2));
    assert_eq!((timeline.roots(), timeline.state.signing()), (1, &renewed));
    // Another root has to be trusted first.
    let other = make().unwrap();
    timeline.own = Some(other.clone());
    assert!(timeline.advance_to(3));
    assert_eq!((timeline.roots(), timeline.state.signing()), (2, &renewed));
    timeline.publish();
    timeline.advance_to(4);
    timeline.advance_to(304);
    assert_eq!(timeline.state.signing(), &other);
    // Back to the former one: its root is still trusted.
    timeline.own = Some(renewed.clone());
    timeline.advance_to(400);
    assert_eq!(timeline.state.signing(), &renewed);
    // Removed: the present CA stays.
    timeline.own = None;
    assert!(!timeline.advance_to(500));
    assert_eq!(timeline.state.signing(), &renewed);
}

#[test]
fn a_user_ca_replaces_a_created_one() {
    let mut timeline = Timeline::begin(None);
    let made = timeline.state.signing().clone();
    let own = make().unwrap();
    timeline.own = Some(own.clone());
    timeline.advance_to(1);
    assert_eq!((timeline.roots(), timeline.state.signing()), (2, &made));
    timeline.publish();
    timeline.advance_to(2);
    timeline.advance_to(302);
    assert_eq!(timeline.state.signing(), &own);
}

#[test]
fn an_intermediate_is_renewed_under_its_root() {
    let mut timeline = Timeline::begin(None);
    let bundle = timeline.state.bundle();
    let due = timeline.state.due(PACE).unwrap().duration_since(at(0)).unwrap().as_secs();
    assert!(!timeline.advance_to(due - 1));
    assert!(timeline.advance_to(due));
    assert_eq!(timeline.state.bundle(), bundle);
    assert!(!timeline.advance_to(due + 1));
}

const DAY: u64 = 24 * 3600;

/// What a user's own CA lacks: the root's key.
fn without_root_key(material: &Material) -> Material {
    let mut parts = serde_json::to_value(material).unwrap();
    parts.as_object_mut().unwrap().remove("root_key");
    serde_json::from_value(parts).unwrap()
}

#[test]
fn a_root_in_its_last_year_is_followed_by_another_as_a_requested_one_is() {
    let mut timeline = Timeline::begin(None);
    let end = timeline.state.signing().root_renewal().unwrap().unwrap();
    let last_year = end.duration_since(at(0)).unwrap().as_secs();
    // As the leader does: whenever something is due.
    let mut steps = 0;
    while let Some(due) = timeline.state.due(PACE) {
        let second = due.duration_since(at(0)).unwrap().as_secs();
        if second >= last_year {
            break;
        }
        assert!(timeline.advance_to(second), "what is due does something");
        steps += 1;
    }
    assert_eq!(steps, 13, "an intermediate each 243 days");
    let old = timeline.state.signing().clone();
    assert!(timeline.advance_to(last_year));
    assert_eq!((timeline.roots(), timeline.state.signing()), (2, &old));
    assert!(!timeline.advance_to(last_year + 1), "once");
    timeline.publish();
    timeline.advance_to(last_year + 2);
    timeline.advance_to(last_year + 302);
    assert_ne!(timeline.state.signing().roots(), old.roots());
}

#[test]
fn steps_that_are_due_do_something_and_do_not_follow_each_other() {
    let year = 365 * DAY;
    // The CA's age when the leader begins, and whether its root's key is there.
    let rows = [
        ("a new one", 0, true),
        ("before the first renewal", 240 * DAY, true),
        ("an own CA of 121 days", year - 121 * DAY, false),
        ("an own CA of one day", year - DAY, false),
        ("a root's last four months, not renewed before", 10 * year - 120 * DAY, true),
        ("a root's last day", 10 * year - DAY, true),
    ];
    for (name, age, root_key) in rows {
        let made = make().unwrap();
        let own = (!root_key).then(|| without_root_key(&made));
        let mut timeline = Timeline::begin(own);
        let _ = timeline.advance_to(age);
        timeline.publish();
        let mut now = age;
        for _ in 0..10 {
            timeline.advance_to(now);
            timeline.publish();
            timeline.advance_to(now);
            let due = timeline.state.due(PACE).unwrap();
            let next = due.duration_since(at(0)).unwrap().as_secs();
            assert!(next > now + 200, "{name}: due at {next}, now {now}");
            now = next;
        }
        assert!(now > age + year, "{name}: ten steps last {} days", (now - age) / DAY);
    }
}

#[test]
fn an_expired_ca_is_replaced_at_once() {
    let own = without_root_key(&make().unwrap());
    let mut timeline = Timeline::begin(Some(own.clone()));
    timeline.own = None;
    assert!(!timeline.advance_to(364 * DAY));
    assert!(timeline.advance_to(365 * DAY));
    assert_ne!(timeline.state.signing().roots(), own.roots());
    assert_eq!(timeline.roots(), 1, "nothing else is trusted: it vouches for nothing");
}

#[test]
fn written_states_are_read_back() {
    let mut timeline = Timeline::begin(None);
    timeline.request = Some("monday");
    timeline.advance_to(0);
    timeline.publish();
    timeline.advance_to(1);
    let text = serde_json::to_string(&timeline.state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), timeline.state);
    let debug = format!("{:?}", timeline.state);
    assert!(!debug.contains("PRIVATE"), "keys are not for logs");
}
