//! Keeps the plugin installed: its binary, its credential and its entry in the primary CNI configuration,
//! whatever other tools write there.
//!
//! [`Installation::pass`] looks and mends; [`watch`] decides when to look.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::conflist::{self, Form, Without};
use super::files;
use crate::chain;
use crate::entry::{Entry, PLUGIN};

/// The credential's name in the configuration folder. No runtime reads files with this ending.
pub(crate) const KUBECONFIG: &str = "ambit-cni.kubeconfig";
/// Endings that runtimes read, as libcni does.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// Where things are, as this process sees them.
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
    #[error("{action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("waiting for the plugin's credential")]
    NoCredential,
    #[error("waiting for a CNI configuration in {}: the cluster's network plugin writes it", .0.display())]
    NoConfiguration(PathBuf),
}

/// What is to be installed.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    pub(crate) layout: Layout,
    pub(crate) entry: Entry,
    /// The kubeconfig's text, once there is one.
    pub(crate) credential: Option<String>,
}

/// A configuration file that a runtime would take.
#[derive(Clone, Debug)]
struct Found {
    path: PathBuf,
    text: String,
    form: Form,
}

impl Installation {
    /// Mends what is not as it should be; says what was mended.
    pub(crate) fn pass(&self) -> Result<Vec<&'static str>, InstallError> {
        let mut mended = Vec::new();
        if self.install_binary()? {
            mended.push("binary");
        }
        let credential = self.credential.as_ref().ok_or(InstallError::NoCredential)?;
        let path = self.layout.kubeconfig();
        if !files::holds(&path, credential.as_bytes(), 0o600) {
            files::replace(&path, credential.as_bytes(), 0o600).map_err(failed("writing", &path))?;
            mended.push("credential");
        }
        // Last: from here on the runtime calls the plugin.
        let folder = &self.layout.conf_dir;
        let primary = configurations(folder)?.into_iter().next();
        let primary = primary.ok_or_else(|| InstallError::NoConfiguration(folder.clone()))?;
        if chained(&primary, &self.entry)? {
            mended.push("configuration");
        }
        // Those that were primary before. Read again: a list may just have taken its single file's place.
        for other in configurations(folder)?.iter().skip(1) {
            if unchained(other)? {
                mended.push("former configuration");
            }
        }
        Ok(mended)
    }

    fn install_binary(&self) -> Result<bool, InstallError> {
        let target = self.layout.binary();
        files::install(&self.layout.source, &target, 0o755).map_err(failed("installing", &target))
    }
}

/// The files that runtimes read, in their order; the first is the one that counts.
fn configurations(folder: &Path) -> Result<Vec<Found>, InstallError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed("listing", folder))? {
        let path = entry.map_err(failed("listing", folder))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("reading", &path)(error)),
        };
        match conflist::form(&text) {
            Ok(form) => found.push(Found { path, text, form }),
            Err(error) => {
                tracing::debug!(path = %path.display(), error = chain(&error), "no CNI configuration");
            }
        }
    }
    Ok(found)
}

/// Puts our entry into a configuration.
fn chained(found: &Found, entry: &Entry) -> Result<bool, InstallError> {
    let Ok(Some(text)) = conflist::with_entry(&found.text, entry) else { return Ok(false) };
    match found.form {
        Form::List => rewrite(&found.path, &found.path, &text)?,
        Form::Single => {
            let list = found.path.with_extension("conflist");
            rewrite(&list, &found.path, &text)?;
            // Its name sorts before the list's, so it would stay the one that counts.
            files::remove(&found.path).map_err(failed("removing", &found.path))?;
        }
    }
    Ok(true)
}

/// Takes our entry out of a configuration, and brings back what it was made of.
fn unchained(found: &Found) -> Result<bool, InstallError> {
    match conflist::without_entry(&found.text) {
        Err(_) | Ok(Without::Same) => return Ok(false),
        Ok(Without::List(text)) => rewrite(&found.path, &found.path, &text)?,
        Ok(Without::Single(text)) => {
            let single = found.path.with_extension("conf");
            // Another tool may have written it anew.
            if !single.exists() {
                rewrite(&single, &found.path, &text)?;
            }
            files::remove(&found.path).map_err(failed("removing", &found.path))?;
        }
        Ok(Without::Nothing) => files::remove(&found.path).map_err(failed("removing", &found.path))?,
    }
    Ok(true)
}

/// With the permissions of the file it comes from.
fn rewrite(path: &Path, like: &Path, text: &str) -> Result<(), InstallError> {
    let mode =
        std::fs::metadata(like).map_or(0o600, |found| Permissions::mode(&found.permissions()) & 0o7777);
    files::replace(path, text.as_bytes(), mode).map_err(failed("writing", path))
}

/// Takes everything away again: the entries first, so that nobody calls a plugin that is not there. Goes on
/// where something fails, and says what did.
pub(crate) fn remove(layout: &Layout) -> Vec<InstallError> {
    let mut problems = Vec::new();
    match configurations(&layout.conf_dir) {
        Ok(found) => problems.extend(found.iter().filter_map(|found| unchained(found).err())),
        Err(error) => problems.push(error),
    }
    for path in [layout.binary(), layout.kubeconfig()] {
        if let Err(error) = files::remove(&path) {
            problems.push(failed("removing", &path)(error));
        }
    }
    problems
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { action, path, source }
}

#[cfg(test)]
#[path = "installer_tests.rs"]
mod tests;
