use super::*;
use crate::objects::catalog::{Catalog, FileChange};

fn ns(name: &str, version: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{version: \
         v{version}}}}}\n---\n"
    )
}

fn outline(saved: &Saved) -> Vec<String> {
    let mut lines: Vec<String> = saved
        .load()
        .unwrap()
        .into_iter()
        .flat_map(|(file, objects)| {
            objects.into_iter().map(move |object| match object {
                Object::Namespace(o) => {
                    format!("{file} {} {}", o.metadata.name, o.metadata.labels["version"])
                }
                other => panic!("{other:?}"),
            })
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn copies_follow_the_files() {
    let temporary = tempfile::tempdir().unwrap();
    let saved = Saved::open(temporary.path().join("good")).unwrap();
    let mut catalog = Catalog::new();
    let y = ObjectKey {
        kind: ambit_core::derive::Kind::Namespace,
        namespace: String::new(),
        name: "y".to_owned(),
    };
    let (none, only_y) = (BTreeSet::new(), BTreeSet::from([y]));
    let mut step_refusing = |refused: &BTreeSet<ObjectKey>, file: &str, content: Option<String>| {
        let file = FileName::from(file);
        let change = match content {
            Some(text) => FileChange::Text { file, text },
            None => FileChange::Gone { file },
        };
        saved.apply(catalog.step(vec![change]).save, refused);
        outline(&saved)
    };
    let everything = ["a.yaml x v3", "a.yaml y v1", "d/b.yaml z v1"];
    let mut step = |file: &str, content: Option<String>| step_refusing(&none, file, content);
    assert_eq!(step("a.yaml", Some(ns("x", 1) + &ns("y", 1))), ["a.yaml x v1", "a.yaml y v1"]);
    assert_eq!(step("d/b.yaml", Some(ns("z", 1))), ["a.yaml x v1", "a.yaml y v1", "d/b.yaml z v1"]);
    // What is bad now is kept as it was, with what is good now.
    let mixed = step("a.yaml", Some(ns("x", 2) + "a: ["));
    assert_eq!(mixed, ["a.yaml x v2", "a.yaml y v1", "d/b.yaml z v1"]);
    let worse = step("a.yaml", Some("a: [".to_owned()));
    assert_eq!(worse, ["a.yaml x v2", "a.yaml y v1", "d/b.yaml z v1"]);
    // So is what can be read and not put in force.
    let content = ns("x", 3) + &ns("y", 3);
    assert_eq!(step_refusing(&only_y, "a.yaml", Some(content)), everything);
    assert_eq!(step_refusing(&none, "a.yaml", None), ["d/b.yaml z v1"]);
    assert_eq!(step_refusing(&only_y, "a.yaml", Some(ns("y", 4))), ["d/b.yaml z v1"]);
}

#[test]
fn a_damaged_copy_is_ignored() {
    let temporary = tempfile::tempdir().unwrap();
    let saved = Saved::open(temporary.path().to_owned()).unwrap();
    let change = FileChange::Text { file: "a".into(), text: ns("x", 1) };
    saved.apply(Catalog::new().step(vec![change]).save, &BTreeSet::new());
    fs::write(temporary.path().join("0.json"), "{").unwrap();
    fs::write(temporary.path().join("1.json.7.tmp"), "{").unwrap();
    assert_eq!(outline(&saved), ["a x v1"]);
}
