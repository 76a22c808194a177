use std::os::unix::fs::MetadataExt;

use super::*;

fn inode() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}

fn fresh() -> File {
    std::thread::spawn(|| {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}

#[test]
fn thread_is_inside_and_returns() {
    let namespace = fresh();
    let (own, other) = (inode(), namespace.metadata().unwrap().ino());
    assert_ne!(own, other);
    assert_eq!(within(&namespace, || Ok(inode())).unwrap(), other);
    assert_eq!(inode(), own);
    let failed: io::Result<()> = within(&namespace, || Err(io::ErrorKind::Other.into()));
    assert!(failed.is_err());
    assert_eq!(inode(), own);
}

#[test]
fn thread_returns_after_a_panic() {
    let namespace = fresh();
    std::thread::spawn(move || {
        let own = inode();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            within::<()>(&namespace, || panic!("on purpose"))
        }));
        assert!(panicked.is_err());
        assert_eq!(inode(), own);
    })
    .join()
    .unwrap();
}

#[test]
fn thread_stays_when_the_file_is_no_namespace() {
    let own = inode();
    let file = tempfile::tempfile().unwrap();
    let result = within(&file, || Ok(inode()));
    assert!(result.is_err());
    assert_eq!(inode(), own);
}
