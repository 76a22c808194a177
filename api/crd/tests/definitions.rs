//! The definitions in `deploy/crds` are those of the types, and the objects in `objects` are what they are
//! said to be. The suite of the cluster applies the same objects.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ambit_crd::{Outcome, parse, schema};

const ACCEPTED: &str = include_str!("objects/accepted.yaml");
const REFUSED_AT_APPLY: &str = include_str!("objects/refused-at-apply.yaml");
const REFUSED_BY_AMBIT: &str = include_str!("objects/refused-by-ambit.yaml");

#[test]
fn the_generated_files_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let listed = fs::read_dir(&folder).expect("deploy/crds").map(|entry| entry.expect("an entry").path());
    let found: BTreeMap<String, String> = listed
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("a text"))
        })
        .collect();
    let expected: BTreeMap<String, String> = schema::files().into_iter().collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, text) in &expected {
        assert!(found[name] == *text, "{name} is out of date: run `cargo xtask crds`");
    }
}

#[test]
fn objects_are_accepted_or_refused_as_listed() {
    for document in parse(ACCEPTED) {
        assert!(
            matches!(document.outcome, Outcome::Accepted { .. }),
            "{}: {:?}",
            document.position,
            document.outcome
        );
    }
    for text in [REFUSED_AT_APPLY, REFUSED_BY_AMBIT] {
        for document in parse(text) {
            let position = document.position;
            let Outcome::Rejected { object, mistakes, .. } = document.outcome else {
                panic!("{position} is accepted")
            };
            assert!(object.is_some(), "{position} has no name: {mistakes:?}");
        }
    }
}
