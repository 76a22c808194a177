use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn secrets_are_private_and_persistent() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::open(&temporary.path().join("a/state")).unwrap();
    assert_eq!(mode(&temporary.path().join("a/state")), 0o700);
    assert_eq!(folder.read_secret("key").unwrap(), None);
    folder.write_secret("key", "first").unwrap();
    folder.write_secret("key", "second").unwrap();
    assert_eq!(mode(&folder.path("key")), 0o600);
    assert_eq!(
        Folder::open(&temporary.path().join("a/state")).unwrap().read_secret("key").unwrap().as_deref(),
        Some("second")
    );
    let names: Vec<_> = fs::read_dir(temporary.path().join("a/state"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["key"], "no temporary file is left");
}

#[test]
fn exposed_secrets_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::open(temporary.path()).unwrap();
    folder.write_secret("key", "x").unwrap();
    for exposed in [0o640, 0o604, 0o620, 0o602] {
        fs::set_permissions(folder.path("key"), fs::Permissions::from_mode(exposed)).unwrap();
        let error = folder.read_secret("key").unwrap_err();
        assert!(matches!(error, Error::Exposed { mode, .. } if mode == exposed), "{error}");
    }
    fs::set_permissions(folder.path("key"), fs::Permissions::from_mode(0o400)).unwrap();
    assert_eq!(folder.read_secret("key").unwrap().as_deref(), Some("x"));
}

#[test]
fn removing_twice_is_fine() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::open(temporary.path()).unwrap();
    folder.write_public("a", "x").unwrap();
    assert_eq!(mode(&folder.path("a")), 0o644);
    folder.remove("a").unwrap();
    folder.remove("a").unwrap();
    assert!(!folder.path("a").exists());
}
