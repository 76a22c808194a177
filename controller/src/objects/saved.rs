//! Last good versions on disk, one copy per object file, so that a file that is bad when the controller
//! starts still has something to fall back on. Way in: [`Saved::load`] at the start, [`Saved::apply`] after
//! each step.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ambit_core::derive::{Object, ObjectKey};
use ambit_crd::Outcome;
use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::FileName;
use super::catalog::Save;
use crate::state::{self, context};

/// The copies.
#[derive(Debug)]
pub(crate) struct Saved {
    folder: PathBuf,
}

/// One copy: the file it is of, and its objects as they were written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    file: String,
    objects: Vec<Value>,
}

impl Saved {
    /// Opens the folder of copies, making it if it is not there.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, state::Error> {
        state::make_private(&folder)?;
        Ok(Self { folder })
    }

    /// Every copy that can be read. One that cannot is reported and left out: it is a safety net, not the
    /// truth.
    pub(crate) fn load(&self) -> Result<Vec<(FileName, Vec<Object>)>, state::Error> {
        let entries = fs::read_dir(&self.folder).map_err(context("listing", &self.folder))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(context("listing", &self.folder))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(Some(copy)) => {
                    let objects = copy.objects.into_iter().filter_map(accepted).collect();
                    found.push((FileName::from(copy.file), objects));
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "last good version cannot be read");
                }
            }
        }
        Ok(found)
    }

    /// Writes what a step says. Of objects in `refused` (what they say cannot be put in force) the earlier
    /// version is kept. A failure is reported and costs only the net.
    pub(crate) fn apply(&self, saves: Vec<Save>, refused: &BTreeSet<ObjectKey>) {
        for save in saves {
            let (file, result) = match save {
                Save::Keep { file, accepted, mut stale } => {
                    let (bad, good): (Vec<_>, Vec<_>) =
                        accepted.into_iter().partition(|(key, _)| refused.contains(key));
                    stale.extend(bad.into_iter().map(|(key, _)| key));
                    let good = good.into_iter().map(|(_, value)| value).collect();
                    let result = self.keep(&file, good, &stale);
                    (file, result)
                }
                Save::Drop { file } => {
                    let result = state::remove(&self.path(&file));
                    (file, result)
                }
            };
            if let Err(error) = result {
                tracing::error!(%file, error = %crate::error_chain(&error), "last good version cannot be kept");
            }
        }
    }

    fn keep(
        &self,
        file: &FileName,
        good: Vec<Value>,
        stale: &BTreeSet<ObjectKey>,
    ) -> Result<(), state::Error> {
        let path = self.path(file);
        let old = read(&path).ok().flatten();
        let mut objects = good;
        if !stale.is_empty() {
            let old = old.as_ref().map(|copy| copy.objects.clone()).unwrap_or_default();
            objects
                .extend(old.into_iter().filter(|value| key(value).is_some_and(|key| stale.contains(&key))));
        }
        if old.is_some_and(|old| old.objects == objects) {
            return Ok(());
        }
        let copy = Copy { file: file.to_string(), objects };
        let text = serde_json::to_vec(&copy).map_err(io::Error::other).map_err(context("encoding", &path))?;
        state::replace(&path, &text, 0o600)
    }

    fn path(&self, file: &str) -> PathBuf {
        let digest = digest::digest(&digest::SHA256, file.as_bytes());
        self.folder.join(format!("{}.json", crate::hex::encode(digest.as_ref())))
    }
}

fn read(path: &Path) -> Result<Option<Copy>, io::Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn accepted(value: Value) -> Option<Object> {
    match ambit_crd::parse_object(value) {
        Outcome::Accepted { object, .. } => Some(*object),
        // It was good when it was kept: another version of Ambit kept it.
        Outcome::Ignored { .. } | Outcome::Rejected { .. } => None,
    }
}

fn key(value: &Value) -> Option<ObjectKey> {
    accepted(value.clone()).map(|object| object.key())
}

#[cfg(test)]
mod tests {
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
        let (nobody, only_y) = (BTreeSet::new(), BTreeSet::from([y]));
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
        let mut step = |file: &str, content: Option<String>| step_refusing(&nobody, file, content);
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
        assert_eq!(step_refusing(&nobody, "a.yaml", None), ["d/b.yaml z v1"]);
        assert_eq!(step_refusing(&only_y, "a.yaml", Some(ns("y", 4))), ["d/b.yaml z v1"]);
    }

    #[test]
    fn a_damaged_copy_is_left_out() {
        let temporary = tempfile::tempdir().unwrap();
        let saved = Saved::open(temporary.path().to_owned()).unwrap();
        let change = FileChange::Text { file: "a".into(), text: ns("x", 1) };
        saved.apply(Catalog::new().step(vec![change]).save, &BTreeSet::new());
        fs::write(temporary.path().join("0.json"), "{").unwrap();
        fs::write(temporary.path().join("1.json.7.tmp"), "{").unwrap();
        assert_eq!(outline(&saved), ["a x v1"]);
    }
}
