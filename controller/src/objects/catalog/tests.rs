//! Replays of what happens to files, and what comes of it.

use proptest::prelude::*;

use super::*;

/// A namespace `name` with its version as a label.
fn ns(name: &str, version: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{version: v{version}}}}}\n---\n"
    )
}

/// A document with a mistake that can be named.
fn bad(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{version: 1}}}}\n---\n")
}

const GARBAGE: &str = "a: [\n---\n";

fn text(file: &str, content: impl Into<String>) -> FileChange {
    FileChange::Text { file: file.into(), text: content.into() }
}

fn gone(file: &str) -> FileChange {
    FileChange::Gone { file: file.into() }
}

/// Events in words: `+a1` for namespace a in version 1, `-a` for its end.
fn describe(step: &Step) -> String {
    let words = step.events.iter().map(|event| match event {
        ObjectEvent::Put(object) => match &**object {
            Object::Namespace(namespace) => {
                format!("+{}{}", namespace.metadata.name, &namespace.metadata.labels["version"][1..])
            }
            other => format!("+{}", other.key()),
        },
        ObjectEvent::Delete(key) => format!("-{}", key.name),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Problems in words: `b.yaml rejected Namespace a`, with `*` when an earlier version is in force.
fn problems(catalog: &Catalog) -> Vec<String> {
    let words = catalog.problems().into_iter().map(|problem| {
        let verdict = format!("{:?}", problem.verdict).to_lowercase();
        let star = if problem.earlier_version_in_force { "*" } else { "" };
        format!("{} {verdict} {}{star}", problem.file, problem.object.unwrap_or("?".to_owned()))
    });
    words.collect()
}

#[test]
fn sequences_of_file_changes() {
    type Steps = Vec<(Vec<FileChange>, &'static str, Vec<&'static str>)>;
    let rows: Vec<(&str, Steps)> = vec![
        (
            "put, change, leave alone, delete",
            vec![
                (vec![text("a", ns("x", 1) + &ns("y", 1))], "+x1 +y1", vec![]),
                (vec![text("a", ns("x", 2) + &ns("y", 1))], "+x2", vec![]),
                (vec![text("a", ns("y", 1) + "# a comment\n" + &ns("x", 2))], "", vec![]),
                (vec![text("a", ns("x", 2))], "-y", vec![]),
                (vec![gone("a")], "-x", vec![]),
                (vec![gone("a")], "", vec![]),
            ],
        ),
        (
            "a bad document keeps its object and does not affect others",
            vec![
                (vec![text("a", ns("x", 1) + &ns("y", 1) + &ns("z", 1))], "+x1 +y1 +z1", vec![]),
                (vec![text("a", ns("x", 2) + &bad("y"))], "+x2 -z", vec!["a rejected Namespace y*"]),
                (vec![text("a", ns("x", 2) + &ns("y", 3))], "+y3", vec![]),
            ],
        ),
        (
            "a bad document that never was good is nothing",
            vec![
                (vec![text("a", bad("x") + &ns("y", 1))], "+y1", vec!["a rejected Namespace x"]),
                (vec![text("a", ns("x", 1) + &ns("y", 1))], "+x1", vec![]),
            ],
        ),
        (
            "a document without a name keeps whatever is not there",
            vec![
                (vec![text("a", ns("x", 1) + &ns("y", 1))], "+x1 +y1", vec![]),
                (vec![text("a", ns("x", 2) + GARBAGE)], "+x2", vec!["a rejected ?*"]),
                (vec![text("a", ns("x", 2) + GARBAGE)], "", vec!["a rejected ?*"]),
                (vec![text("a", ns("x", 2))], "-y", vec![]),
            ],
        ),
        (
            "an unreadable file keeps everything",
            vec![
                (vec![text("a", ns("x", 1))], "+x1", vec![]),
                (
                    vec![FileChange::Unreadable { file: "a".into(), reason: "denied".to_owned() }],
                    "",
                    vec!["a unreadable ?*"],
                ),
                (vec![gone("a")], "-x", vec![]),
                (
                    vec![FileChange::Unreadable { file: "b".into(), reason: "denied".to_owned() }],
                    "",
                    vec!["b unreadable ?"],
                ),
            ],
        ),
        (
            "two files: the first by name wins, the second takes over",
            vec![
                (vec![text("b", ns("x", 2))], "+x2", vec![]),
                (vec![text("a", ns("x", 1))], "+x1", vec!["b duplicate Namespace x"]),
                (vec![text("b", ns("x", 3))], "", vec!["b duplicate Namespace x"]),
                (vec![gone("a")], "+x3", vec![]),
            ],
        ),
        (
            "a current version goes before a last good one",
            vec![
                (vec![text("a", ns("x", 1))], "+x1", vec![]),
                (vec![text("a", bad("x"))], "", vec!["a rejected Namespace x*"]),
                (vec![text("b", ns("x", 2))], "+x2", vec!["a rejected Namespace x*"]),
                (vec![gone("b")], "+x1", vec!["a rejected Namespace x*"]),
            ],
        ),
        (
            "twice in one file: the first counts",
            vec![(vec![text("a", ns("x", 1) + &ns("x", 2))], "+x1", vec!["a duplicate Namespace x"])],
        ),
        (
            "a rename and a move are no deletion",
            vec![
                (vec![text("a", ns("x", 1) + &ns("y", 1))], "+x1 +y1", vec![]),
                (vec![gone("a"), text("b", ns("x", 1) + &ns("y", 1))], "", vec![]),
                (vec![text("b", ns("x", 1)), text("c", ns("y", 2))], "+y2", vec![]),
            ],
        ),
        (
            "kinds of others are reported as ignored",
            vec![(
                vec![text(
                    "a",
                    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n---\n".to_owned() + &ns("x", 1),
                )],
                "+x1",
                vec!["a ignored ConfigMap c (v1)"],
            )],
        ),
        (
            "an empty file has no objects",
            vec![(vec![text("a", ns("x", 1))], "+x1", vec![]), (vec![text("a", "")], "-x", vec![])],
        ),
    ];
    for (name, steps) in rows {
        let mut catalog = Catalog::new();
        for (index, (changes, events, expected)) in steps.into_iter().enumerate() {
            let step = catalog.step(changes);
            assert_eq!(describe(&step), events, "{name}, step {index}");
            assert_eq!(problems(&catalog), expected, "{name}, step {index}");
        }
    }
}

#[test]
fn saved_versions_are_in_force_until_the_file_is_good() {
    let restored = || {
        let mut first = Catalog::new();
        first.step(vec![text("a", ns("x", 1) + &ns("y", 1)), text("b", ns("z", 1))]);
        let mut catalog = Catalog::new();
        for file in ["a", "b"] {
            let of_file = |object: &&Object| (object.key().name == "z") == (file == "b");
            catalog.restore(&file.into(), first.objects().filter(of_file).cloned().collect());
        }
        catalog
    };
    let mut catalog = restored();
    let step = catalog.step(vec![text("a", bad("x") + &ns("y", 2)), gone("b")]);
    assert_eq!(describe(&step), "+y2 -z");
    assert_eq!(problems(&catalog), ["a rejected Namespace x*"]);
    let mut catalog = restored();
    assert_eq!(catalog.objects().count(), 3);
    let step = catalog.step(vec![text("a", ns("x", 1) + &ns("y", 1)), text("b", GARBAGE)]);
    assert_eq!(describe(&step), "");
}

#[test]
fn accepted_and_stale_objects_are_saved() {
    let mut catalog = Catalog::new();
    let step = catalog.step(vec![text("a", ns("x", 1) + &ns("y", 1))]);
    let [Save::Keep { accepted, stale, .. }] = &step.save[..] else { panic!("{step:?}") };
    assert_eq!((accepted.len(), stale.len()), (2, 0));
    let step = catalog.step(vec![text("a", ns("x", 2) + &bad("y") + &bad("new"))]);
    let [Save::Keep { accepted, stale, .. }] = &step.save[..] else { panic!("{step:?}") };
    assert_eq!(accepted.len(), 1);
    assert_eq!(stale.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["y"]);
    let step = catalog.step(vec![FileChange::Unreadable { file: "a".into(), reason: String::new() }]);
    assert_eq!(step.save, [], "what was saved stays");
    assert_eq!(catalog.step(vec![gone("a")]).save, [Save::Drop { file: "a".into() }]);
}

/// One document: a good or bad version of one of three objects, or garbage.
fn document() -> impl Strategy<Value = (Option<(u8, u32)>, String)> {
    let good = |(name, version)| (Some((name, version)), ns(&format!("n{name}"), version));
    prop_oneof![
        6 => (0..3_u8, 1..4_u32).prop_map(good),
        1 => (0..3_u8).prop_map(|name| (None, bad(&format!("n{name}")))),
        1 => Just((None, GARBAGE.to_owned())),
    ]
}

/// The documents of a file: the object that each names with its content, if any, and its text; or no file.
type Documents = Option<Vec<(Option<(u8, u32)>, String)>>;

/// The documents of a file; `None`: the file is deleted.
fn file_content() -> impl Strategy<Value = Documents> {
    prop::option::weighted(0.8, prop::collection::vec(document(), 0..4))
}

proptest! {
    /// Replayed events give the objects of the catalog; and files without mistakes leave no trace of earlier
    /// versions.
    #[test]
    fn events_lead_to_the_same_objects(
        steps in prop::collection::vec((0..3_usize, file_content()), 1..20)
    ) {
        let names = ["a", "b", "c"];
        let mut catalog = Catalog::new();
        let mut replayed: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        for (file, documents) in steps {
            let change = match documents {
                Some(documents) => {
                    let content: String = documents.into_iter().map(|(_, text)| text).collect();
                    text(names[file], content)
                }
                None => gone(names[file]),
            };
            for event in catalog.step(vec![change]).events {
                match event {
                    ObjectEvent::Put(object) => {
                        let old = replayed.insert(object.key(), (*object).clone());
                        prop_assert_ne!(old, Some(*object), "an event that changes nothing");
                    }
                    ObjectEvent::Delete(key) => {
                        prop_assert!(replayed.remove(&key).is_some(), "{} did not exist", key);
                    }
                }
            }
            let held = catalog.objects().map(|object| (object.key(), object.clone()));
            let held: BTreeMap<_, _> = held.collect();
            prop_assert_eq!(&held, &replayed);
        }
        let clean: Vec<_> = names.iter().map(|name| text(name, ns(name, 1))).collect();
        catalog.step(clean);
        prop_assert_eq!(catalog.objects().count(), 3);
        prop_assert!(catalog.problems().is_empty());
    }
}
