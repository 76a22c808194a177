//! The plugin's installation: its binary, its credential and its entry in the primary CNI configuration,
//! restored whenever other tools overwrite them.
//!
//! [`Installation::pass`] checks and repairs; [`watch`](super::watch) decides when.

use std::cell::Cell;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::conflist::{self, Form, Without};
use super::files::{self, Stamp};
use crate::entry::{Entry, PLUGIN};
use ambit_kube::error::chain;

/// The credential's file in the configuration folder. No runtime reads files with this extension.
pub(crate) const KUBECONFIG: &str = "ambit-cni.kubeconfig";
/// Extensions that runtimes read, as libcni does.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Paths, as this process sees them.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The plugin's binary in this image.
    pub(crate) source: PathBuf,
    pub(crate) bin_dir: PathBuf,
    pub(crate) conf_dir: PathBuf,
}

impl Layout {
    pub(crate) fn binary(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.conf_dir.join(KUBECONFIG)
    }
}

/// Why the plugin is not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("failed to {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("waiting for the CNI credential")]
    NoCredential,
    #[error("waiting for a CNI configuration in {}: the cluster's network plugin writes it", .0.display())]
    NoConfiguration(PathBuf),
}

/// What is to be installed.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    pub(crate) layout: Layout,
    pub(crate) entry: Entry,
    /// The kubeconfig, once there is one.
    pub(crate) credential: Option<String>,
    /// The binaries that were found equal.
    compared: Cell<Option<[Stamp; 2]>>,
}

/// A configuration file that a runtime would take.
#[derive(Clone, Debug)]
struct Found {
    path: PathBuf,
    text: String,
    form: Form,
}

impl Installation {
    pub(crate) fn new(layout: Layout, entry: Entry) -> Self {
        Self { layout, entry, credential: None, compared: Cell::new(None) }
    }

    /// Writes what is missing or different; returns the parts that were written.
    pub(crate) fn pass(&self) -> Result<Vec<&'static str>, InstallError> {
        let mut written = Vec::new();
        if self.install_binary()? {
            written.push("binary");
        }
        let credential = self.credential.as_ref().ok_or(InstallError::NoCredential)?;
        let path = self.layout.kubeconfig();
        if !files::holds(&path, credential.as_bytes(), 0o600) {
            files::replace(&path, credential.as_bytes(), 0o600).map_err(failed("write", &path))?;
            written.push("credential");
        }
        // Last: from here on the runtime calls the plugin.
        let folder = &self.layout.conf_dir;
        let primary = configurations(folder)?.into_iter().next();
        let primary = primary.ok_or_else(|| InstallError::NoConfiguration(folder.clone()))?;
        if add_entry(&primary, &self.entry)? {
            written.push("configuration");
        }
        // Those that were primary before. Listed again: a list may just have replaced its single file.
        for other in configurations(folder)?.iter().skip(1) {
            if remove_entry(other)? {
                written.push("former configuration");
            }
        }
        Ok(written)
    }

    fn install_binary(&self) -> Result<bool, InstallError> {
        let (source, target) = (&self.layout.source, self.layout.binary());
        // Both are long, and looked at every second: they are read when one of them has changed.
        let stamps = || Some([Stamp::of(source)?, Stamp::of(&target)?]);
        let before = stamps();
        if before.is_some() && before == self.compared.get() {
            return Ok(false);
        }
        let written = files::install(source, &target, 0o755).map_err(failed("install", &target))?;
        self.compared.set(before.filter(|both| !written && both.iter().all(Stamp::has_settled)));
        Ok(written)
    }
}

/// The files that runtimes read, in their order; the first is the primary configuration.
fn configurations(folder: &Path) -> Result<Vec<Found>, InstallError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed("list", folder))? {
        let path = entry.map_err(failed("list", folder))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && ending.is_some_and(|ending| EXTENSIONS.contains(&ending)) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            // Removed since the listing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("read", &path)(error)),
        };
        match conflist::form(&text) {
            Ok(form) => found.push(Found { path, text, form }),
            Err(error) => {
                let path = path.display();
                tracing::debug!(%path, error = chain(&error), "ignored a file that is no CNI configuration");
            }
        }
    }
    Ok(found)
}

/// Adds our entry to a configuration; whether it was missing or different.
fn add_entry(found: &Found, entry: &Entry) -> Result<bool, InstallError> {
    let Ok(Some(text)) = conflist::with_entry(&found.text, entry) else { return Ok(false) };
    match found.form {
        Form::List => rewrite(&found.path, &found.path, &text)?,
        Form::Single => {
            let list = found.path.with_extension("conflist");
            rewrite(&list, &found.path, &text)?;
            // Its name sorts before the list's, so it would stay the primary one.
            files::remove(&found.path).map_err(failed("remove", &found.path))?;
        }
    }
    Ok(true)
}

/// Removes our entry from a configuration, and restores its original form; whether there was one.
fn remove_entry(found: &Found) -> Result<bool, InstallError> {
    match conflist::without_entry(&found.text) {
        Err(_) | Ok(Without::Same) => return Ok(false),
        Ok(Without::List(text)) => rewrite(&found.path, &found.path, &text)?,
        Ok(Without::Single(text)) => {
            let single = found.path.with_extension("conf");
            // Another tool may have written it again.
            if !single.exists() {
                rewrite(&single, &found.path, &text)?;
            }
            files::remove(&found.path).map_err(failed("remove", &found.path))?;
        }
        Ok(Without::Nothing) => files::remove(&found.path).map_err(failed("remove", &found.path))?,
    }
    Ok(true)
}

/// Writes a file with the mode of another.
fn rewrite(path: &Path, like: &Path, text: &str) -> Result<(), InstallError> {
    let mode =
        std::fs::metadata(like).map_or(0o600, |found| Permissions::mode(&found.permissions()) & 0o7777);
    files::replace(path, text.as_bytes(), mode).map_err(failed("write", path))
}

/// Removes everything: the entries first, so that runtimes do not call a missing plugin. Continues after
/// errors, and returns them.
pub(crate) fn remove(layout: &Layout) -> Vec<InstallError> {
    let mut errors = Vec::new();
    match configurations(&layout.conf_dir) {
        Ok(found) => errors.extend(found.iter().filter_map(|found| remove_entry(found).err())),
        Err(error) => errors.push(error),
    }
    for path in [layout.binary(), layout.kubeconfig()] {
        if let Err(error) = files::remove(&path) {
            errors.push(failed("remove", &path)(error));
        }
    }
    errors
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { action, path, source }
}

#[cfg(test)]
pub(crate) mod tests;
