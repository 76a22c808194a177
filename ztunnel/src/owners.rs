//! The file that says which source enrolled which pod, over restarts: [`OwnersFile`].

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::enrolment::Owners;
use crate::error::Error;

/// The file and what should be in it. Only a restart reads it.
#[derive(Debug)]
pub(crate) struct OwnersFile {
    path: PathBuf,
    owners: Mutex<Owners>,
}

impl OwnersFile {
    /// What an earlier daemon wrote.
    pub(crate) fn read(path: PathBuf) -> Result<Self, Error> {
        let owners = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                let path = path.display();
                tracing::warn!(%path, %error, "failed to parse which source enrolled which pod");
                Owners::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Owners::default(),
            Err(source) => return Err(Error::File { operation: "read", path, source }),
        };
        Ok(Self { path, owners: Mutex::new(owners) })
    }

    /// What should be in it.
    pub(crate) fn owners(&self) -> Owners {
        self.owners.lock().clone()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the owners if they changed.
    pub(crate) fn save(&self, owners: Owners) {
        let mut held = self.owners.lock();
        if owners == *held {
            return;
        }
        match self.write(&owners) {
            Ok(()) => *held = owners,
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "failed to write which source enrolled which pod");
            }
        }
    }

    /// Writes it again if it is not there; true if it was missing.
    pub(crate) fn put_right(&self) -> io::Result<bool> {
        let held = self.owners.lock();
        if *held == Owners::default() || self.path.exists() {
            return Ok(false);
        }
        self.write(&held).map(|()| true)
    }

    fn write(&self, owners: &Owners) -> io::Result<()> {
        let draft = self.path.with_extension("json.new");
        std::fs::write(&draft, serde_json::to_vec(owners)?)?;
        std::fs::rename(&draft, &self.path)
    }
}
