use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn names(root: &Path) -> Vec<String> {
    list(root).files.keys().map(ToString::to_string).collect()
}

#[test]
fn only_visible_object_files_are_listed() {
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
fn only_the_listed_state_is_read() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a.yaml");
    let listed = || list(root.path()).files["a.yaml"];
    fs::write(&path, "hello").unwrap();
    assert_eq!(read(root.path(), "a.yaml", listed()), Content::Text("hello".to_owned()));
    fs::write(&path, [b'a', 0xff]).unwrap();
    assert_eq!(read(root.path(), "a.yaml", listed()), Content::Unreadable("not UTF-8 at byte 1".to_owned()));
    let old = listed();
    fs::write(&path, "longer than before").unwrap();
    assert_eq!(read(root.path(), "a.yaml", old), Content::Changed);
    let old = listed();
    fs::remove_file(&path).unwrap();
    assert_eq!(read(root.path(), "a.yaml", old), Content::Changed);
}

#[test]
fn a_file_that_is_too_large_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let file = File::create(root.path().join("a.yaml")).unwrap();
    file.set_len(MAX_SIZE + 1).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    let listed = list(root.path()).files["a.yaml"];
    assert_eq!(read(root.path(), "a.yaml", listed), Content::Unreadable("larger than 64 MiB".to_owned()));
}
