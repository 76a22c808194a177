//! Sequences of watch events, and the object events that follow.

use ambit_core::derive::{AuthorizationPolicy, Metadata, Namespace, Object, PolicyAction};

use super::*;

const KIND: Kind = Kind::Namespace;

fn key(name: &str) -> ObjectKey {
    ObjectKey { kind: KIND, namespace: String::new(), name: name.to_owned() }
}

/// A version of a namespace; `!` in front makes it one with a mistake.
fn seen(name: &str) -> Box<Seen> {
    let (name, bad) = name.strip_prefix('!').map_or((name, false), |name| (name, true));
    let metadata = Metadata { name: name.to_owned(), ..Metadata::default() };
    let mistake = Mistake { field: "f".to_owned(), message: "m".to_owned() };
    let read = if bad {
        Err(Rejected { mistakes: vec![mistake], closed: None })
    } else {
        Ok(Box::new(Object::Namespace(Namespace { metadata, ..Namespace::default() })))
    };
    Box::new(Seen {
        key: key(name),
        read,
        uid: String::new(),
        version: "v1",
        resource_version: String::new(),
        generation: 1,
        created: String::new(),
        taints: Vec::new(),
        conditions: Vec::new(),
        listeners: Vec::new(),
    })
}

/// One step in words: `begin`, `complete`, `absent`, `listed NAME`, `put NAME`, `gone NAME`.
fn handle(inventory: &mut Inventory, words: &str, now: Instant) {
    let (verb, name) = words.split_once(' ').unwrap_or((words, ""));
    let event = match verb {
        "begin" => WatchEvent::Begin(KIND),
        "complete" => WatchEvent::Complete(KIND),
        "absent" => WatchEvent::Absent(KIND),
        "listed" => WatchEvent::Listed(seen(name)),
        "put" => WatchEvent::Put(seen(name)),
        "gone" => WatchEvent::Gone(key(name)),
        other => panic!("{other}"),
    };
    inventory.handle(event, now);
}

/// What is due, in words: `+a -b`; nothing is due yet: `not yet`.
fn taken(inventory: &mut Inventory) -> String {
    let Some(events) = inventory.take() else { return "not yet".to_owned() };
    let words = events.iter().map(|event| match event {
        ObjectEvent::Put(object) => format!("+{}", object.key().name),
        ObjectEvent::Delete(key) => format!("-{}", key.name),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// One to which every kind has been listed, the first with `names`.
fn begun(names: &[&str]) -> Inventory {
    let mut inventory = Inventory::new();
    let now = Instant::now();
    for kind in KINDS {
        inventory.handle(WatchEvent::Begin(*kind), now);
        for name in names.iter().filter(|_| *kind == KIND) {
            inventory.handle(WatchEvent::Listed(seen(name)), now);
        }
        assert!(inventory.take().is_none(), "{kind} is not complete");
        inventory.handle(WatchEvent::Complete(*kind), now);
    }
    inventory
}

#[test]
fn sequences_of_watch_events() {
    type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str], &'a str, usize);
    let rows: [Row<'_>; 9] = [
        ("put and delete", &["a"], &["put b", "gone a"], "+b -a", 0),
        (
            "a relist brings and takes",
            &["a", "b"],
            &["begin", "listed b", "listed c", "complete"],
            "+b +c -a",
            0,
        ),
        (
            "a relist begun twice",
            &["a", "b"],
            &["begin", "listed a", "begin", "listed b", "complete"],
            "+a +b -a",
            0,
        ),
        ("a relist not complete takes nothing", &["a", "b"], &["begin", "listed b"], "+b", 0),
        ("a bad version keeps the good one", &["a"], &["put !a"], "", 1),
        ("a bad version in a relist keeps it too", &["a"], &["begin", "listed !a", "complete"], "", 1),
        ("good again", &["a"], &["put !a", "put a"], "+a", 0),
        ("a bad one goes", &["a"], &["put !a", "gone a"], "-a", 0),
        ("one that was never good goes without a word", &[], &["put !a", "gone a"], "", 0),
    ];
    for (name, names, steps, expected, problems) in rows {
        let mut inventory = begun(names);
        assert_eq!(
            taken(&mut inventory),
            names.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ")
        );
        for step in steps {
            handle(&mut inventory, step, Instant::now());
        }
        assert_eq!(taken(&mut inventory), expected, "{name}");
        assert_eq!(inventory.problems().len(), problems, "{name}");
        let counted = inventory.kinds[&KIND].objects.values().filter(|in_force| **in_force).count();
        assert_eq!(inventory.kinds[&KIND].in_force, counted, "{name}");
        assert_eq!(taken(&mut inventory), "", "{name}: once");
    }
}

#[test]
fn problems_say_whether_an_earlier_version_is_in_force() {
    let mut inventory = begun(&["a"]);
    assert!(!inventory.problems_changed());
    handle(&mut inventory, "put !a", Instant::now());
    handle(&mut inventory, "put !b", Instant::now());
    assert!(inventory.problems_changed());
    let problems = inventory.problems();
    let words: Vec<_> = problems
        .iter()
        .map(|problem| (problem.object.as_deref().unwrap(), problem.earlier_version_in_force))
        .collect();
    assert_eq!(words, [("Namespace a", true), ("Namespace b", false)]);
    assert_eq!(inventory.counts(), BTreeMap::from([("Namespace", 1)]));
    handle(&mut inventory, "put !b", Instant::now());
    assert!(!inventory.problems_changed(), "nothing new");
}

#[test]
fn objects_of_an_uninstalled_kind_stay_for_a_while() {
    let now = Instant::now();
    let mut inventory = Inventory::new();
    for kind in KINDS.iter().filter(|kind| **kind != KIND) {
        inventory.handle(WatchEvent::Complete(*kind), now);
    }
    assert_eq!(inventory.missing(), ["Namespace"]);
    handle(&mut inventory, "absent", now);
    assert_eq!(taken(&mut inventory), "");

    let mut inventory = begun(&["a"]);
    assert_eq!(taken(&mut inventory), "+a");
    handle(&mut inventory, "absent", now);
    handle(&mut inventory, "absent", now + ABSENCE / 2);
    assert_eq!(taken(&mut inventory), "");
    handle(&mut inventory, "begin", now + ABSENCE / 2);
    handle(&mut inventory, "listed a", now + ABSENCE / 2);
    handle(&mut inventory, "complete", now + ABSENCE / 2);
    handle(&mut inventory, "absent", now + ABSENCE);
    assert_eq!(taken(&mut inventory), "+a", "it was there in between");
    handle(&mut inventory, "absent", now + 2 * ABSENCE);
    assert_eq!(taken(&mut inventory), "-a");
}

#[test]
fn a_kind_that_cannot_be_read_keeps_everything_waiting_with_its_reason() {
    let now = Instant::now();
    let unreadable = || WatchEvent::Error(KIND, Some("served as v2 only: none of v1".to_owned()));
    let mut inventory = Inventory::new();
    inventory.handle(unreadable(), now);
    for kind in KINDS.iter().filter(|kind| **kind != KIND) {
        inventory.handle(WatchEvent::Complete(*kind), now);
    }
    assert!(inventory.take().is_none(), "nothing is published without that kind");
    assert_eq!(inventory.missing(), ["Namespace (served as v2 only: none of v1)"]);

    // One that can no longer be read keeps its objects.
    let mut inventory = begun(&["a"]);
    assert_eq!(taken(&mut inventory), "+a");
    inventory.handle(unreadable(), now);
    inventory.handle(unreadable(), now + 10 * ABSENCE);
    assert_eq!(taken(&mut inventory), "");
    assert_eq!(inventory.watch_errors().len(), 1);
}

#[test]
fn every_kind_is_watched() {
    for kind in Kind::ALL {
        assert!(KINDS.contains(kind), "{kind}");
    }
}

/// An AuthorizationPolicy, with or without a mistake.
fn policy(name: &str, bad: bool) -> WatchEvent {
    let metadata = Metadata { namespace: "shop".to_owned(), name: name.to_owned(), ..Metadata::default() };
    let good = AuthorizationPolicy { metadata, ..AuthorizationPolicy::default() };
    let closed = AuthorizationPolicy { action: PolicyAction::Unreadable, ..good.clone() };
    let object = |policy| Box::new(Object::AuthorizationPolicy(policy));
    let mistakes = vec![Mistake { field: "f".to_owned(), message: "m".to_owned() }];
    let key = object(good.clone()).key();
    let read = if bad { Err(Rejected { mistakes, closed: Some(object(closed)) }) } else { Ok(object(good)) };
    WatchEvent::Put(Box::new(Seen { key, read, ..*seen("a") }))
}

/// Whether the last version of each policy that was put closes its scope; `-` is a deletion.
fn policies(inventory: &mut Inventory) -> Vec<String> {
    let events = inventory.take().expect("begun");
    let words = events.into_iter().map(|event| match event {
        ObjectEvent::Put(object) => match *object {
            Object::AuthorizationPolicy(policy) if policy.action == PolicyAction::Unreadable => "closed",
            _ => "open",
        },
        ObjectEvent::Delete(_) => "-",
    });
    words.map(str::to_owned).collect()
}

/// A replica that saw the good version and one that starts after it decide alike.
#[test]
fn a_rejected_policy_closes_its_scope_whatever_was_there_before() {
    let now = Instant::now();
    let mut old = begun(&[]);
    old.handle(policy("p", false), now);
    assert_eq!(policies(&mut old), ["open"]);
    let mut new = begun(&[]);
    for inventory in [&mut old, &mut new] {
        inventory.handle(policy("p", true), now);
        assert_eq!(policies(inventory), ["closed"]);
        let problems = inventory.problems();
        assert!(problems.iter().all(|problem| !problem.earlier_version_in_force), "{problems:?}");
        assert_eq!(inventory.counts()["AuthorizationPolicy"], 0);
        inventory.handle(policy("p", false), now);
        assert_eq!(policies(inventory), ["open"], "mended");
        inventory.handle(policy("p", true), now);
        inventory.handle(WatchEvent::Gone(key_of_policy("p")), now);
        assert_eq!(policies(inventory), ["closed", "-"], "deleted");
        assert!(inventory.problems().is_empty());
    }
}

fn key_of_policy(name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::AuthorizationPolicy, namespace: "shop".to_owned(), name: name.to_owned() }
}
