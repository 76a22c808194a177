use super::*;

fn source(name: &str) -> SourceName {
    name.parse().unwrap()
}

fn release(uid: &str, cookie: u64) -> Release {
    Release { uid: uid.to_owned(), cookie: NetnsCookie(cookie) }
}

/// What the kernel holds: cookies are counted from 1.
fn held(uids: &[&str]) -> Vec<(NetnsCookie, String)> {
    (1..).map(NetnsCookie).zip(uids.iter().map(|uid| (*uid).to_owned())).collect()
}

/// A daemon that enrolled a (1), b (2) for cni and c (3) for run, and was restarted.
fn recovered() -> Enrolment {
    let mut before = Enrolment::default();
    for (who, uid, cookie) in [("cni", "a", 1), ("cni", "b", 2), ("run", "c", 3)] {
        before.hello(&source(who));
        before.added(&source(who), uid, NetnsCookie(cookie));
    }
    let owners = serde_json::to_string(&before.owners()).unwrap();
    let owners = serde_json::from_str(&owners).unwrap();
    Enrolment::recover(held(&["a", "b", "c"]), &owners)
}

#[test]
fn snapshot_releases_only_what_its_source_no_longer_names() {
    let mut state = recovered();
    let cni = source("cni");
    assert_eq!(state.waiting(), 3);
    state.hello(&cni);
    state.added(&cni, "a", NetnsCookie(1));
    assert_eq!(state.waiting(), 2);
    assert_eq!(state.snapshot_sent(&cni), [release("b", 2)]);
    state.released("b");
    assert_eq!(state.waiting(), 1, "c's source has not come back");
    assert_eq!(state.snapshot_sent(&cni), []);
    assert_eq!(state.owners().0.len(), 2, "c stays the other source's");
}

#[test]
fn snapshot_releases_what_has_no_owner() {
    let mut state = Enrolment::recover(held(&["a", "b"]), &Owners::default());
    let cni = source("cni");
    state.hello(&cni);
    assert_eq!(state.keep(&cni, "b"), Err(Refusal::NotLive("b".to_owned())));
    assert_eq!(state.snapshot_sent(&cni), [release("a", 1)]);
}

#[test]
fn hello_begins_a_new_snapshot() {
    let mut state = recovered();
    let cni = source("cni");
    for uid in ["a", "b"] {
        state.hello(&cni);
        state.added(&cni, uid, NetnsCookie(if uid == "a" { 1 } else { 2 }));
    }
    assert_eq!(state.snapshot_sent(&cni), [release("a", 1)]);
}

#[test]
fn keep_needs_a_live_workload_of_the_same_source() {
    let mut state = recovered();
    let (cni, run) = (source("cni"), source("run"));
    assert_eq!(state.keep(&cni, "x"), Err(Refusal::Unknown("x".to_owned())));
    assert_eq!(state.keep(&run, "a"), Err(Refusal::Foreign { uid: "a".to_owned(), owner: cni.clone() }));
    assert_eq!(state.keep(&cni, "a"), Err(Refusal::NotLive("a".to_owned())));
    state.added(&cni, "a", NetnsCookie(1));
    assert_eq!(state.keep(&cni, "a"), Ok(()));
}

#[test]
fn delete_is_idempotent_and_only_for_the_owner() {
    let mut state = recovered();
    let (cni, run) = (source("cni"), source("run"));
    assert!(matches!(state.delete(&run, "a"), Err(Refusal::Foreign { .. })));
    assert_eq!(state.delete(&cni, "a"), Ok(Some(release("a", 1))));
    state.released("a");
    assert_eq!(state.delete(&cni, "a"), Ok(None));
}

#[test]
fn new_namespace_displaces_old_namespace_and_new_name_displaces_old_name() {
    let state = recovered();
    assert_eq!(state.displaced("a", NetnsCookie(1)), [], "the same again");
    assert_eq!(state.displaced("a", NetnsCookie(9)), [release("a", 1)], "restarted in a new namespace");
    assert_eq!(state.displaced("z", NetnsCookie(2)), [release("b", 2)], "the namespace has another tenant");
    assert_eq!(state.displaced("a", NetnsCookie(2)), [release("a", 1), release("b", 2)], "both");
    assert!(
        state.holds("a", NetnsCookie(1))
            && !state.holds("a", NetnsCookie(2))
            && !state.holds("z", NetnsCookie(1))
    );
}
