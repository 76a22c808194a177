//! A machine's file system: the host's, with a machine's own places laid over it.
//!
//! `/run` is new with each boot, as are the pins below `/sys/fs/bpf`; `/etc`, `/opt` and `/var` show the
//! host's and keep what is written to them in the machine's folder. Nothing of this is seen outside.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::cgroup;
use super::spec::Spec;

/// What of the host's is hidden below a layer of the machine's own.
const LAYERED: [&str; 3] = ["/etc", "/opt", "/var"];
/// What must not be on a layer: overlays are made in the one, mounts are passed on in the other.
const PLAIN: [&str; 2] = ["/var/lib/containerd", "/var/lib/kubelet"];

const NOTHING: Option<&str> = None;

/// Makes the file system in this mount namespace, which no other process may be in.
pub(super) fn make(spec: &Spec) -> Result<()> {
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)
        .context("failed to make the mounts private")?;
    let shared = Shared::open(spec)?;
    let groups = groups(spec)?;
    forget()?;
    for path in LAYERED {
        layer(spec, Path::new(path))?;
    }
    fresh("tmpfs", Path::new("/run"), Some("mode=755"))?;
    std::fs::create_dir_all("/run/lock")?;
    shared.bind()?;
    for path in PLAIN {
        let own = spec.folder.join("plain").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(&own)?;
        std::fs::create_dir_all(path)?;
        bind(&own, Path::new(path))?;
    }
    fresh("sysfs", Path::new("/sys"), None)?;
    relocate(&groups)?;
    fresh("bpf", Path::new("/sys/fs/bpf"), Some("mode=700"))?;
    // Where the kernel has them.
    for (kind, path) in [("tracefs", "/sys/kernel/tracing"), ("securityfs", "/sys/kernel/security")] {
        if Path::new(path).is_dir() {
            drop(fresh(kind, Path::new(path), None));
        }
    }
    // As on a node of its own: what pods mount and pass on is seen by the others.
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SHARED, NOTHING)
        .context("failed to make the mounts shared")
}

/// The view of the processes of the namespace we are in.
pub(super) fn processes() -> Result<()> {
    fresh("proc", Path::new("/proc"), None)?;
    mount(NOTHING, "/proc", NOTHING, MsFlags::MS_SHARED, NOTHING).context("failed to make /proc shared")
}

/// Paths of the host that are kept, opened before anything hides them.
struct Shared(Vec<(PathBuf, File)>);

impl Shared {
    fn open(spec: &Spec) -> Result<Self> {
        let helper = spec.helper.parent().context("the helper lies in a folder")?.to_path_buf();
        let mut open = Vec::new();
        for path in spec.shared.iter().cloned().chain([helper]) {
            let file = File::open(&path).with_context(|| format!("failed to open {}", path.display()))?;
            open.push((path, file));
        }
        Ok(Self(open))
    }

    /// Puts those back that are hidden now.
    fn bind(&self) -> Result<()> {
        for (path, file) in &self.0 {
            let hidden = LAYERED.iter().chain(&["/run"]).any(|layer| path.starts_with(layer));
            if hidden {
                std::fs::create_dir_all(path)?;
                bind(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), path)?;
            }
        }
        Ok(())
    }
}

/// Unmounts what other programs of the host have mounted: a mount kept here would live as long as the
/// machine.
fn forget() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("failed to read the mounts")?;
    let others = ["/run/", "/var/", "/opt/", "/etc/"];
    for line in mounts.lines().rev() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, path, kind, ..] = words.as_slice() else { continue };
        if matches!(*kind, "nsfs" | "bpf" | "overlay" | "fuse") && *path != "/"
            || others.iter().any(|other| path.starts_with(other))
            || *path == "/run"
        {
            umount2(unescape(path).as_path(), MntFlags::MNT_DETACH)
                .with_context(|| format!("failed to unmount {path}"))?;
        }
    }
    Ok(())
}

/// White space is written as `\040` in the list of mounts.
fn unescape(path: &str) -> PathBuf {
    let replaced = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(replaced.into_iter().fold(path.to_owned(), |path, (from, to)| path.replace(from, to)))
}

/// Lays the machine's own over a folder of the host's.
fn layer(spec: &Spec, path: &Path) -> Result<()> {
    let own = spec.folder.join("root").join(path.strip_prefix("/")?);
    std::fs::create_dir_all(&own)?;
    // A layer must not lie below what it is laid over: then the machine starts with an empty folder.
    if spec.folder.starts_with(path) {
        ensure!(path != Path::new("/etc"), "a cluster's state cannot be kept in /etc");
        return bind(&own, path);
    }
    let work = spec.folder.join("work").join(path.strip_prefix("/")?);
    std::fs::create_dir_all(&work)?;
    if !path.exists() {
        bail!("this machine has no {}", path.display());
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", path.display(), own.display(), work.display());
    fresh("overlay", path, Some(&options))
}

/// A control-group hierarchy as it will be seen.
struct Group {
    /// Where it waits while `/sys` is mounted again.
    aside: PathBuf,
    mount: PathBuf,
}

/// Puts the machine's groups aside, each as the root of its hierarchy.
fn groups(spec: &Spec) -> Result<Vec<Group>> {
    let aside = spec.folder.join("groups");
    std::fs::create_dir_all(&aside)?;
    let mut found = Vec::new();
    for (number, hierarchy) in cgroup::hierarchies()?.into_iter().enumerate() {
        let aside = aside.join(number.to_string());
        std::fs::create_dir_all(&aside)?;
        bind(&hierarchy.group(&spec.cgroup), &aside)?;
        found.push(Group { aside, mount: hierarchy.mount });
    }
    // Outer ones first: an inner one is then not hidden.
    found.sort_by_key(|group| group.mount.components().count());
    Ok(found)
}

/// Moves the groups to where the host has its hierarchies.
fn relocate(groups: &[Group]) -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    if !groups.iter().any(|group| group.mount == top) {
        fresh("tmpfs", top, Some("mode=755"))?;
    }
    for Group { aside, mount: path } in groups {
        std::fs::create_dir_all(path).with_context(|| format!("failed to create {}", path.display()))?;
        mount(Some(aside), path, NOTHING, MsFlags::MS_MOVE, NOTHING)
            .with_context(|| format!("failed to move a control group to {}", path.display()))?;
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)
        .with_context(|| format!("failed to bind {} to {}", from.display(), to.display()))
}

fn fresh(kind: &str, path: &Path, options: Option<&str>) -> Result<()> {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("failed to mount {kind} on {}", path.display()))
}
