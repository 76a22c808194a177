use super::*;

#[test]
fn instance_names_are_validated() {
    let rows = [
        ("plain", "node-a1", true),
        ("longest", "a23456789012345678901234567890bc", true),
        ("too long", "a23456789012345678901234567890bcd", false),
        ("empty", "", false),
        ("parent directory", "..", false),
        ("a path", "a/b", false),
        ("upper case", "Node", false),
    ];
    for (name, text, valid) in rows {
        assert_eq!(text.parse::<InstanceName>().is_ok(), valid, "{name}");
    }
}

#[test]
fn cgroup2_mount_is_found() {
    let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncg2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
    let rows = [
        ("hybrid", hybrid, Some("/sys/fs/cgroup/unified")),
        (
            "unified",
            "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
            Some("/sys/fs/cgroup"),
        ),
        ("path with a space", "cgroup2 /a\\040b cgroup2 rw 0 0\n", Some("/a b")),
        ("none", "proc /proc proc rw 0 0\n", None),
    ];
    for (name, mounts, expected) in rows {
        assert_eq!(cgroup2(mounts), expected.map(PathBuf::from), "{name}");
    }
}
