//! The folder of object files: its listing, and the content of a file. `*.yaml`, `*.yml` and `*.json`, in
//! subfolders too; hidden names are ignored (editors and volume managers use them).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::FileName;
use super::tracker::Stamp;

/// A larger file is refused: objects of a hundred thousand workloads fit.
const MAX_SIZE: u64 = 64 * 1024 * 1024;
/// Deeper subfolders are ignored.
const MAX_DEPTH: usize = 8;

/// Distinguishes a folder from another with the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FolderId {
    device: u64,
    inode: u64,
}

/// A listing of the folder.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// The listed folder; none if it is missing.
    pub(crate) folder: Option<FolderId>,
    pub(crate) files: BTreeMap<FileName, Stamp>,
    /// Folders that could not be listed and files without metadata, by relative path (empty for the root),
    /// and why.
    pub(crate) unreachable: BTreeMap<String, String>,
}

impl Listing {
    pub(crate) fn unreachable(&self) -> BTreeSet<String> {
        self.unreachable.keys().cloned().collect()
    }
}

/// Lists the folder.
pub(crate) fn list(root: &Path) -> Listing {
    let folder = fs::metadata(root).ok().map(|folder| FolderId { device: folder.dev(), inode: folder.ino() });
    let mut listing = Listing { folder, ..Listing::default() };
    let mut folders = vec![(root.to_owned(), String::new(), 0)];
    while let Some((path, name, depth)) = folders.pop() {
        if let Err(error) = list_one(&path, &name, depth, &mut listing, &mut folders) {
            listing.unreachable.insert(name, error.to_string());
        }
    }
    listing
}

fn list_one(
    path: &Path,
    folder: &str,
    depth: usize,
    listing: &mut Listing,
    folders: &mut Vec<(PathBuf, String, usize)>,
) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let relative = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if entry.file_type()?.is_dir() {
            if depth < MAX_DEPTH {
                folders.push((entry.path(), relative, depth + 1));
            }
        } else if is_object_file(&name) {
            // Links to files are followed (mounted volumes consist of them), links to folders are not.
            match fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() => {
                    listing.files.insert(relative.into(), stamp(&metadata));
                }
                // Deleted since the listing, or a dangling link.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(_) => {}
                Err(error) => {
                    listing.unreachable.insert(relative, error.to_string());
                }
            }
        }
    }
    Ok(())
}

fn is_object_file(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}

fn stamp(metadata: &Metadata) -> Stamp {
    let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
    }
}

/// The content of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text(String),
    Unreadable(String),
    /// It has changed since the listing: list again.
    Changed,
}

/// Reads a file in the listed state.
pub(crate) fn read(root: &Path, name: &str, listed: Stamp) -> Content {
    match try_read(&root.join(name), listed) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Changed,
        Err(error) => Content::Unreadable(error.to_string()),
    }
}

fn try_read(path: &Path, listed: Stamp) -> io::Result<Content> {
    // Not blocking: the path may be a pipe by now.
    let file = File::options().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path)?;
    let unchanged = |file: &File| Ok::<_, io::Error>(stamp(&file.metadata()?) == listed);
    if !file.metadata()?.is_file() || !unchanged(&file)? {
        return Ok(Content::Changed);
    }
    if listed.size > MAX_SIZE {
        return Ok(Content::Unreadable(format!("larger than {} MiB", MAX_SIZE >> 20)));
    }
    let mut bytes = Vec::new();
    (&file).take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if !unchanged(&file)? || bytes.len() as u64 != listed.size {
        return Ok(Content::Changed);
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Content::Text(text),
        Err(error) => Content::Unreadable(format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to())),
    })
}

#[cfg(test)]
mod tests;
