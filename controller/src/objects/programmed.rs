//! Which waypoints were programmed once, on disk: a binding that acted acts again after a restart, whether or
//! not its waypoint is ready then. On Kubernetes the Gateway's status says it.
//!
//! Entry points: [`Programmed::load`] at the start, [`Programmed::save`] after each step.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use ambit_core::derive::{Kind, ObjectKey};
use ambit_kube::error::chain;

use crate::state::{self, context};

/// The file, and what it holds.
#[derive(Debug)]
pub(crate) struct Programmed {
    path: PathBuf,
    saved: BTreeSet<ObjectKey>,
}

impl Programmed {
    /// Reads the file. One that cannot be read is an error: without it, bindings that acted would act no
    /// more.
    pub(crate) fn load(path: PathBuf) -> Result<Self, state::Error> {
        let saved = match fs::read(&path) {
            Ok(bytes) => {
                let names: Vec<(String, String)> = serde_json::from_slice(&bytes)
                    .map_err(io::Error::other)
                    .map_err(context("read", &path))?;
                names.into_iter().map(key).collect()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(context("read", &path)(error)),
        };
        Ok(Self { path, saved })
    }

    /// The Gateways that were programmed once.
    pub(crate) fn known(&self) -> impl Iterator<Item = ObjectKey> {
        self.saved.iter().cloned()
    }

    /// Writes the file if it differs. An error is logged, and the next step tries again.
    pub(crate) fn save(&mut self, now: &BTreeSet<ObjectKey>) {
        if self.saved == *now {
            return;
        }
        let names: Vec<(&str, &str)> =
            now.iter().map(|key| (key.namespace.as_str(), key.name.as_str())).collect();
        let written = serde_json::to_vec(&names)
            .map_err(io::Error::other)
            .map_err(context("encode", &self.path))
            .and_then(|text| state::replace(&self.path, &text, 0o600));
        match written {
            Ok(()) => self.saved.clone_from(now),
            Err(error) => {
                tracing::error!(error = chain(&error), "failed to save which waypoints were programmed");
            }
        }
    }
}

fn key((namespace, name): (String, String)) -> ObjectKey {
    ObjectKey { kind: Kind::Gateway, namespace, name }
}
