//! Last good versions on disk, one copy per object file, for files that are bad when the controller starts.
//! Entry points: [`Saved::load`] at the start, [`Saved::apply`] after each step.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ambit_core::derive::{Object, ObjectKey};
use ambit_crd::Outcome;
use ambit_kube::error::chain;
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

/// One copy: the path of the object file, and its objects as written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    file: String,
    objects: Vec<Value>,
}

impl Saved {
    /// Opens the folder of copies, or creates it.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, state::Error> {
        state::make_private(&folder)?;
        Ok(Self { folder })
    }

    /// Every readable copy. An unreadable one is logged and left out: copies are only a fallback.
    pub(crate) fn load(&self) -> Result<Vec<(FileName, Vec<Object>)>, state::Error> {
        let entries = fs::read_dir(&self.folder).map_err(context("list", &self.folder))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(context("list", &self.folder))?.path();
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
                    tracing::warn!(path = %path.display(), %error, "failed to read a last good version");
                }
            }
        }
        Ok(found)
    }

    /// Writes the results of a step. Objects in `refused` (their present version is not accepted) keep the
    /// earlier version. An error is logged: copies are only a fallback.
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
                tracing::error!(%file, error = chain(&error), "failed to save a last good version");
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
        let text = serde_json::to_vec(&copy).map_err(io::Error::other).map_err(context("encode", &path))?;
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
        // It was accepted when it was saved, by another version of Ambit.
        Outcome::Ignored { .. } | Outcome::Rejected { .. } => None,
    }
}

fn key(value: &Value) -> Option<ObjectKey> {
    accepted(value.clone()).map(|object| object.key())
}

#[cfg(test)]
mod tests;
