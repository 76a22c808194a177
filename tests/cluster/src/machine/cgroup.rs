//! Control groups: each machine has one in every hierarchy, version 1 or 2, and sees it as the root.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_harness::within;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A mounted hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    pub(super) mount: PathBuf,
    /// Version 2, and with controllers: inner groups then may have no processes.
    leaves: bool,
}

/// The leaf that a machine's own processes are in where inner groups may have none.
const LEAF: &str = "system";

/// Every hierarchy that is mounted.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("failed to read the mounts")?;
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(_), Some(mount), Some(kind)) = (words.next(), words.next(), words.next()) else { continue };
        let mount = PathBuf::from(mount);
        if !kind.starts_with("cgroup") || found.iter().any(|known| known.mount == mount) {
            continue;
        }
        let controllers = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        found.push(Hierarchy { leaves: kind == "cgroup2" && !controllers.trim().is_empty(), mount });
    }
    ensure!(!found.is_empty(), "no control groups are mounted");
    Ok(found)
}

impl Hierarchy {
    pub(super) fn group(&self, name: &str) -> PathBuf {
        self.mount.join(name.trim_start_matches('/'))
    }

    /// The file that moves a process into a group.
    pub(super) fn processes(&self, name: &str) -> PathBuf {
        let group = self.group(name);
        if self.leaves { group.join(LEAF).join("cgroup.procs") } else { group.join("cgroup.procs") }
    }
}

/// Makes a group in every hierarchy.
pub(super) fn make(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.group(name);
        std::fs::create_dir_all(&group).with_context(|| format!("failed to create {}", group.display()))?;
        // A new cpuset is empty, and an empty one takes no process: from the top down, each has what its
        // parent has.
        for path in below(&hierarchy.mount, &group) {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let all = path.parent().map(|parent| std::fs::read_to_string(parent.join(file)));
                if let Some(Ok(all)) = all
                    && !hierarchy.leaves
                {
                    std::fs::write(path.join(file), all.trim())
                        .with_context(|| format!("failed to set {file}"))?;
                }
            }
        }
        if hierarchy.leaves {
            let leaf = group.join(LEAF);
            std::fs::create_dir_all(&leaf).with_context(|| format!("failed to create {}", leaf.display()))?;
            delegate(&hierarchy.mount, &group)?;
        }
    }
    Ok(())
}

/// The groups from below a hierarchy's root to this one.
fn below(root: &Path, group: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        group.ancestors().take_while(|path| *path != root).map(Path::to_path_buf).collect();
    found.reverse();
    found
}

/// Lets the groups down to this one use the controllers that there are.
fn delegate(root: &Path, group: &Path) -> Result<()> {
    for path in below(root, group) {
        let from = path.parent().context("a group lies in a group")?;
        let controllers = std::fs::read_to_string(from.join("cgroup.controllers"))?;
        for controller in controllers.split_whitespace() {
            // One that is bound to a version 1 hierarchy or refuses is one the kubelet does without.
            drop(std::fs::write(from.join("cgroup.subtree_control"), format!("+{controller}")));
        }
    }
    Ok(())
}

/// Ends what is still in a group and removes it, in every hierarchy.
pub(super) fn remove(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.group(name);
        within(Duration::from_secs(30), &format!("{} is removed", group.display()), || clear(&group))?;
    }
    Ok(())
}

/// Removes a group and those in it; an error while processes are in them.
fn clear(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            clear(&entry.path())?;
        }
    }
    let processes = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0) {
        // It may end by itself at any moment.
        let _: Result<(), _> = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    std::fs::remove_dir(group).with_context(|| format!("failed to remove {}", group.display()))
}

/// Processor seconds and bytes of memory of a group.
pub(super) fn usage(name: &str) -> Result<(f64, u64)> {
    let (mut nanoseconds, mut memory) = (0_u64, 0);
    for hierarchy in hierarchies()? {
        let group = hierarchy.group(name);
        let number = |file: &str| -> Option<u64> {
            std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
        };
        let field = |file: &str, key: &str| -> Option<u64> {
            let text = std::fs::read_to_string(group.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
        };
        nanoseconds += number("cpuacct.usage")
            .or_else(|| {
                hierarchy.leaves.then(|| field("cpu.stat", "usage_usec ")).flatten().map(|it| it * 1000)
            })
            .unwrap_or(0);
        // Without the page cache, which the kernel takes back when it needs it.
        memory += field("memory.stat", "total_rss ").or_else(|| field("memory.stat", "anon ")).unwrap_or(0);
    }
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    Ok((nanoseconds as f64 / 1e9, memory))
}
