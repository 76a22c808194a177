use super::*;

const SETTLE: Duration = Duration::from_millis(50);

fn listing<const N: usize>(files: [(&str, u64); N]) -> BTreeMap<FileName, Stamp> {
    files.into_iter().map(|(name, size)| (name.into(), Stamp { size, ..Stamp::default() })).collect()
}

/// Takes in a listing, marks what is due as read, and describes it.
fn update<const N: usize>(tracker: &mut Tracker, at: u64, files: [(&str, u64); N]) -> String {
    let due = tracker.update(Duration::from_millis(at), &listing(files), &BTreeSet::new());
    let mut due_text: Vec<String> =
        due.read.iter().map(|(name, stamp)| format!("read {name}={}", stamp.size)).collect();
    for (name, stamp) in &due.read {
        tracker.taken(name, *stamp);
    }
    due_text.extend(due.gone.iter().map(|name| format!("gone {name}")));
    if due.again {
        due_text.push("again".to_owned());
    }
    due_text.join(", ")
}

#[test]
fn a_settled_file_is_read_once() {
    let mut tracker = Tracker::new(SETTLE);
    assert_eq!(update(&mut tracker, 0, [("a", 1)]), "again");
    assert_eq!(update(&mut tracker, 30, [("a", 1)]), "again");
    assert_eq!(update(&mut tracker, 60, [("a", 1)]), "read a=1");
    assert_eq!(update(&mut tracker, 90, [("a", 1)]), "");
    assert_eq!(update(&mut tracker, 9_000, [("a", 1)]), "");
}

#[test]
fn a_file_being_written_is_not_read() {
    let mut tracker = Tracker::new(SETTLE);
    update(&mut tracker, 0, [("a", 9)]);
    update(&mut tracker, 60, [("a", 9)]);
    // Truncated, then written in parts: neither the empty file nor a part is read.
    assert_eq!(update(&mut tracker, 100, [("a", 0)]), "again");
    assert_eq!(update(&mut tracker, 140, [("a", 4)]), "again");
    assert_eq!(update(&mut tracker, 180, [("a", 8)]), "again");
    assert_eq!(update(&mut tracker, 240, [("a", 8)]), "read a=8");
}

#[test]
fn a_file_replaced_by_unlinking_is_not_gone() {
    let mut tracker = Tracker::new(SETTLE);
    update(&mut tracker, 0, [("a", 1)]);
    update(&mut tracker, 60, [("a", 1)]);
    assert_eq!(update(&mut tracker, 100, []), "again");
    assert_eq!(update(&mut tracker, 120, [("a", 2)]), "again");
    assert_eq!(update(&mut tracker, 200, [("a", 2)]), "read a=2");
}

#[test]
fn a_deleted_file_is_reported_once() {
    let mut tracker = Tracker::new(SETTLE);
    update(&mut tracker, 0, [("a", 1), ("b", 1)]);
    update(&mut tracker, 60, [("a", 1), ("b", 1)]);
    assert_eq!(update(&mut tracker, 100, [("b", 1)]), "again");
    assert_eq!(update(&mut tracker, 160, [("b", 1)]), "gone a");
    assert_eq!(update(&mut tracker, 200, [("b", 1)]), "");
}

#[test]
fn a_file_that_never_settled_is_forgotten() {
    let mut tracker = Tracker::new(SETTLE);
    assert_eq!(update(&mut tracker, 0, [("a", 1)]), "again");
    assert_eq!(update(&mut tracker, 10, []), "");
    assert!(tracker.entries.is_empty());
}

#[test]
fn a_file_that_changed_while_it_was_read_is_read_again() {
    let mut tracker = Tracker::new(SETTLE);
    tracker.update(Duration::ZERO, &listing([("a", 1)]), &BTreeSet::new());
    let due = tracker.update(SETTLE, &listing([("a", 1)]), &BTreeSet::new());
    assert_eq!(due.read.len(), 1);
    // Not marked as read: the reader saw another stamp after reading.
    assert_eq!(update(&mut tracker, 60, [("a", 2)]), "again");
    assert_eq!(update(&mut tracker, 120, [("a", 2)]), "read a=2");
}

#[test]
fn files_of_an_unlistable_folder_are_not_deleted() {
    let mut tracker = Tracker::new(SETTLE);
    update(&mut tracker, 0, [("x/a", 1), ("xa", 1)]);
    update(&mut tracker, 60, [("x/a", 1), ("xa", 1)]);
    let broken = BTreeSet::from(["x".to_owned()]);
    for at in [100, 200, 300] {
        let due = tracker.update(Duration::from_millis(at), &listing([("xa", 1)]), &broken);
        assert_eq!(due, Due::default());
    }
    let all = BTreeSet::from([String::new()]);
    assert_eq!(tracker.update(Duration::from_millis(400), &listing([]), &all), Due::default());
    assert_eq!(update(&mut tracker, 500, [("xa", 1)]), "again");
    assert_eq!(update(&mut tracker, 600, [("xa", 1)]), "gone x/a");
}

#[test]
fn files_known_before_a_restart_are_read_or_deleted() {
    let mut tracker = Tracker::new(SETTLE);
    tracker.remember("a".into());
    tracker.remember("b".into());
    assert_eq!(update(&mut tracker, 100, [("b", 1)]), "gone a, again");
    assert_eq!(update(&mut tracker, 200, [("b", 1)]), "read b=1");
}
