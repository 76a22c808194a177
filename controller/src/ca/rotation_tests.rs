//! Rotations told as what happens when.

use ambit_core::model::TrustDomain;

use super::*;

const PACE: Pace = Pace { trust_wait: Duration::from_mins(5), longest: Duration::from_hours(24) };

fn make() -> Result<Material, Error> {
    Material::make(&TrustDomain::default(), at(0))
}

fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_hours(500_000) + Duration::from_secs(second)
}

/// A CA over time, with the leader's side of it: what it would write is written.
struct Story {
    state: State,
    published: Option<String>,
    wish: Option<&'static str>,
    own: Option<Material>,
}

impl Story {
    fn begin(own: Option<Material>) -> Self {
        let facts = Facts { now: at(0), wish: None, own: own.as_ref(), published: None };
        let state = State::first(make, &facts).unwrap();
        let mut story = Self { state, published: None, wish: None, own };
        story.publish();
        story
    }

    fn publish(&mut self) {
        self.published = Some(self.state.bundle());
    }

    /// Takes the steps that are due at a second; the bundle stays as it was.
    fn look(&mut self, second: u64) -> bool {
        let mut moved = false;
        loop {
            let facts = Facts {
                now: at(second),
                wish: self.wish,
                own: self.own.as_ref(),
                published: self.published.as_deref(),
            };
            let next = self
                .state
                .step(&facts, PACE, make, |material| material.renewed(&TrustDomain::default(), at(second)));
            match next.unwrap() {
                Some(next) => (self.state, moved) = (next, true),
                None => return moved,
            }
        }
    }

    fn roots(&self) -> usize {
        self.state.bundle().matches("BEGIN CERTIFICATE").count()
    }

    /// Whether somebody who trusts the bundle of another time takes what a CA signs.
    fn takes(bundle: &str, material: &Material) -> bool {
        material.roots().iter().any(|root| bundle.contains(root.as_str()))
    }
}

#[test]
fn nothing_happens_by_itself() {
    let mut story = Story::begin(None);
    assert!(!story.look(1) && !story.look(1_000_000));
    assert_eq!(story.roots(), 1);
    assert_eq!(story.state.signing(), story.state.serving());
}

#[test]
fn a_wish_makes_a_root_that_is_trusted_before_it_signs_and_the_old_one_until_all_has_ended() {
    let mut story = Story::begin(None);
    let (old, old_bundle) = (story.state.signing().clone(), story.state.bundle());
    story.wish = Some("monday");
    assert!(story.look(10));
    assert_eq!((story.roots(), story.state.signing()), (2, &old));
    // The wait begins when the bundle is there to be read, not before.
    assert!(!story.look(10_000), "not published");
    story.publish();
    assert!(story.look(10_001));
    assert!(!story.look(10_300));
    assert_eq!(story.state.due(PACE), Some(at(10_301)));
    assert_eq!(story.state.signing(), &old);
    assert!(story.look(10_301));
    let new = story.state.signing().clone();
    assert_ne!(new, old);
    // The controller itself is accepted by those who know only the old root and by those who know both.
    assert!(Story::takes(&old_bundle, story.state.serving()));
    assert!(Story::takes(&story.state.bundle(), story.state.serving()));
    assert!(Story::takes(story.published.as_deref().unwrap(), &new));
    assert_eq!(story.roots(), 2);
    // A day and a margin later the old root is gone, and whoever has read any bundle since takes the new one.
    let end = 10_301 + 24 * 3600 + 600;
    assert!(!story.look(end - 1));
    assert_eq!(story.state.due(PACE), Some(at(end)));
    assert!(story.look(end));
    assert_eq!((story.roots(), story.state.serving()), (1, &new));
    assert!(!story.look(end + 1_000), "the wish is granted once");
}

#[test]
fn a_second_wish_while_the_first_is_under_way_starts_the_wait_again() {
    let mut story = Story::begin(None);
    story.wish = Some("one");
    story.look(0);
    story.publish();
    story.look(1);
    let first = story.state.next.clone().unwrap().material;
    story.wish = Some("two");
    story.look(200);
    let second = story.state.next.clone().unwrap();
    assert_ne!(second.material, first);
    assert_eq!(second.trusted_since, None);
    assert!(!story.look(500), "its bundle is not there yet");
    story.publish();
    story.look(501);
    story.look(801);
    assert_eq!(story.state.signing(), &second.material);
    // A third, while the first root is still trusted: all that signed are.
    story.wish = Some("three");
    story.look(900);
    story.publish();
    story.look(901);
    story.look(1_201);
    assert_eq!((story.roots(), story.state.retired.len()), (3, 2));
    assert_eq!(story.state.serving(), &story.state.retired[0].material, "the oldest");
}

#[test]
fn the_users_own() {
    let own = make().unwrap();
    let mut story = Story::begin(Some(own.clone()));
    assert_eq!(story.state.signing(), &own);
    story.wish = Some("monday");
    assert!(story.look(1), "the wish is noted");
    assert_eq!((story.roots(), story.state.signing()), (1, &own), "but makes nothing");
    // Another intermediate under the same root signs at once.
    let renewed = own.renewed(&TrustDomain::default(), at(300 * 24 * 3600)).unwrap().unwrap();
    story.own = Some(renewed.clone());
    assert!(story.look(2));
    assert_eq!((story.roots(), story.state.signing()), (1, &renewed));
    // Another root has to be trusted first.
    let other = make().unwrap();
    story.own = Some(other.clone());
    assert!(story.look(3));
    assert_eq!((story.roots(), story.state.signing()), (2, &renewed));
    story.publish();
    story.look(4);
    story.look(304);
    assert_eq!(story.state.signing(), &other);
    // Back: the root is trusted still.
    story.own = Some(renewed.clone());
    story.look(400);
    assert_eq!(story.state.signing(), &renewed);
    // Taken away: what there is stays.
    story.own = None;
    assert!(!story.look(500));
    assert_eq!(story.state.signing(), &renewed);
}

#[test]
fn an_own_ca_replaces_one_that_was_made() {
    let mut story = Story::begin(None);
    let made = story.state.signing().clone();
    let own = make().unwrap();
    story.own = Some(own.clone());
    story.look(1);
    assert_eq!((story.roots(), story.state.signing()), (2, &made));
    story.publish();
    story.look(2);
    story.look(302);
    assert_eq!(story.state.signing(), &own);
}

#[test]
fn an_intermediate_is_renewed_under_its_root() {
    let mut story = Story::begin(None);
    let bundle = story.state.bundle();
    let due = story.state.due(PACE).unwrap().duration_since(at(0)).unwrap().as_secs();
    assert!(!story.look(due - 1));
    assert!(story.look(due));
    assert_eq!(story.state.bundle(), bundle);
    assert!(!story.look(due + 1));
}

#[test]
fn what_is_kept_reads_back() {
    let mut story = Story::begin(None);
    story.wish = Some("monday");
    story.look(0);
    story.publish();
    story.look(1);
    let text = serde_json::to_string(&story.state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), story.state);
    let debug = format!("{:?}", story.state);
    assert!(!debug.contains("PRIVATE"), "keys are not for logs");
}
