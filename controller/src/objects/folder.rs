//! The folder of object files: what is in it, and what a file says. `*.yaml`, `*.yml` and `*.json`, in
//! subfolders too; hidden names are left out (editors and volume managers keep their own things there).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::FileName;
use super::tracker::Stamp;

/// A larger file is refused: objects of a hundred thousand workloads fit.
const LARGEST: u64 = 64 * 1024 * 1024;
/// Folders within folders; deeper ones are not looked into.
const DEEPEST: usize = 8;

/// Tells a folder from another of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FolderId {
    device: u64,
    inode: u64,
}

/// What a look at the folder found.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Which folder it was; none if it is not there.
    pub(crate) folder: Option<FolderId>,
    pub(crate) files: BTreeMap<FileName, Stamp>,
    /// What could not be looked at, by relative path (the whole folder: empty), and why: folders, rarely
    /// files.
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
            if depth < DEEPEST {
                folders.push((entry.path(), relative, depth + 1));
            }
        } else if is_object_file(&name) {
            // Links are followed to files (mounted volumes are made of them), never to folders.
            match fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() => {
                    listing.files.insert(relative.into(), stamp(&metadata));
                }
                // It went away since it was listed, or is a link to nowhere.
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

/// What a file turned out to be when it was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Text(String),
    Unreadable(String),
    /// Not the file that was listed (any more): look again.
    Changed,
}

/// Reads a file in the state it was listed in.
pub(crate) fn read(root: &Path, name: &str, listed: Stamp) -> Content {
    match try_read(&root.join(name), listed) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Changed,
        Err(error) => Content::Unreadable(error.to_string()),
    }
}

fn try_read(path: &Path, listed: Stamp) -> io::Result<Content> {
    // Not blocking: the name may have become a pipe meanwhile.
    let file = File::options().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path)?;
    let unchanged = |file: &File| Ok::<_, io::Error>(stamp(&file.metadata()?) == listed);
    if !file.metadata()?.is_file() || !unchanged(&file)? {
        return Ok(Content::Changed);
    }
    if listed.size > LARGEST {
        return Ok(Content::Unreadable(format!("larger than {} MiB", LARGEST >> 20)));
    }
    let mut bytes = Vec::new();
    (&file).take(LARGEST + 1).read_to_end(&mut bytes)?;
    if !unchanged(&file)? || bytes.len() as u64 != listed.size {
        return Ok(Content::Changed);
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Content::Text(text),
        Err(error) => Content::Unreadable(format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to())),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn names(root: &Path) -> Vec<String> {
        list(root).files.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_listed() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("shop/deep")).unwrap();
        fs::create_dir_all(path(".git")).unwrap();
        fs::create_dir_all(path("folder.yaml")).unwrap();
        for name in [
            "b.yaml",
            "a.yml",
            "c.json",
            "shop/d.yaml",
            "shop/deep/e.yaml",
            ".hidden.yaml",
            ".git/x.yaml",
            "f.txt",
            "g.yaml~",
            "h.yaml.tmp",
            "yaml",
        ] {
            fs::write(path(name), "x").unwrap();
        }
        symlink(path("b.yaml"), path("link.yaml")).unwrap();
        symlink(path("nowhere"), path("dangling.yaml")).unwrap();
        symlink(path("shop"), path("loop")).unwrap();
        symlink("self.yaml", path("self.yaml")).unwrap();
        nix::unistd::mkfifo(&path("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let expected = ["a.yml", "b.yaml", "c.json", "link.yaml", "shop/d.yaml", "shop/deep/e.yaml"];
        assert_eq!(names(root.path()), expected);
        // One link that leads nowhere must not stop the others.
        assert_eq!(list(root.path()).unreachable(), BTreeSet::from(["self.yaml".to_owned()]));
    }

    #[test]
    fn a_missing_folder_is_unreachable_and_not_empty() {
        let root = tempfile::tempdir().unwrap();
        let listing = list(&root.path().join("gone"));
        assert_eq!(listing.unreachable(), BTreeSet::from([String::new()]));
    }

    #[test]
    fn what_is_read() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.yaml");
        let listed = || list(root.path()).files["a.yaml"];
        fs::write(&path, "hello").unwrap();
        assert_eq!(read(root.path(), "a.yaml", listed()), Content::Text("hello".to_owned()));
        fs::write(&path, [b'a', 0xff]).unwrap();
        assert_eq!(
            read(root.path(), "a.yaml", listed()),
            Content::Unreadable("not UTF-8 at byte 1".to_owned())
        );
        let old = listed();
        fs::write(&path, "longer than before").unwrap();
        assert_eq!(read(root.path(), "a.yaml", old), Content::Changed);
        let old = listed();
        fs::remove_file(&path).unwrap();
        assert_eq!(read(root.path(), "a.yaml", old), Content::Changed);
    }

    #[test]
    fn a_file_that_is_too_large() {
        let root = tempfile::tempdir().unwrap();
        let file = File::create(root.path().join("a.yaml")).unwrap();
        file.set_len(LARGEST + 1).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        let listed = list(root.path()).files["a.yaml"];
        assert_eq!(read(root.path(), "a.yaml", listed), Content::Unreadable("larger than 64 MiB".to_owned()));
    }
}
