//! The programs a cluster is made of: fetched and built once, at pinned versions, into one folder.
//!
//! Entry point: [`parts`]. Building takes some minutes and says so; it may be interrupted at any time and
//! goes on where it was.

mod conformance;
mod go;
mod pause;
mod tools;
pub mod versions;

pub use conformance::{Conformance, conformance};
pub use go::{go_present, h2spec, h2spec_present};
pub(crate) use tools::on_path;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::archive::{Archive, Content};
use tools::{fresh, run, say};
use versions::{COREDNS_IMAGE, KUBERNETES, PAUSE_IMAGE};

/// Where the parts lie, other than in the target folder: several checkouts may share them.
pub const FOLDER_VARIABLE: &str = "AMBIT_CLUSTER_PARTS";

/// The programs, all of them there.
#[derive(Clone, Debug)]
pub struct Parts {
    folder: PathBuf,
}

impl Parts {
    /// One of the programs in `bin`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin().join(name)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn bin(&self) -> PathBuf {
        self.folder.join("bin")
    }

    pub(crate) fn cni(&self) -> PathBuf {
        self.folder.join("cni")
    }

    /// The Gateway API's definitions, standard channel.
    pub(crate) fn gateway_api(&self) -> PathBuf {
        self.folder.join("gateway-api")
    }

    pub(crate) fn images(&self) -> [PathBuf; 2] {
        ["pause.tar", "coredns.tar"].map(|name| self.folder.join("images").join(name))
    }
}

/// Where the parts lie by default: `AMBIT_CLUSTER_PARTS`, or below this target folder.
pub fn folder(target: &Path) -> PathBuf {
    std::env::var_os(FOLDER_VARIABLE)
        .map_or_else(|| target.join("tools").join(format!("kubernetes-{KUBERNETES}")), PathBuf::from)
}

/// The parts in this folder; builds what is missing.
pub fn parts(folder: &Path) -> Result<Parts> {
    std::fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let parts = Parts { folder: folder.clone() };
    // Two builds at once would do everything twice.
    let lock = File::create(folder.join("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    for dir in ["bin", "cni", "images", "gateway-api"] {
        std::fs::create_dir_all(folder.join(dir))?;
    }
    let started = Instant::now();
    let mut built = go::build(&folder)?;
    built |= debian(&folder)?;
    built |= images(&parts)?;
    if built {
        say(&format!(
            "the parts of the cluster: done in {} s, kept in {}",
            started.elapsed().as_secs(),
            folder.display()
        ));
    }
    Ok(parts)
}

/// containerd and runc: Debian's, unpacked without being installed (so no service starts); elsewhere the
/// machine's own.
fn debian(folder: &Path) -> Result<bool> {
    const PROGRAMS: [&str; 4] = ["containerd", "containerd-shim-runc-v2", "ctr", "runc"];
    let bin = folder.join("bin");
    if PROGRAMS.iter().all(|name| bin.join(name).exists()) {
        return Ok(false);
    }
    let unpacked = folder.join("debian");
    if Path::new("/etc/debian_version").exists() && on_path("apt-get").is_some() {
        let download = fresh(&folder.join("download"))?;
        run(
            "containerd and runc, from Debian",
            Command::new("apt-get").args(["-q", "download", "containerd", "runc"]).current_dir(&download),
        )?;
        for entry in std::fs::read_dir(&download)? {
            run("unpacking", Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(&unpacked))?;
        }
        std::fs::remove_dir_all(&download)?;
    }
    for name in PROGRAMS {
        let candidates = [unpacked.join("usr/bin").join(name), unpacked.join("usr/sbin").join(name)];
        let found = candidates.into_iter().find(|path| path.is_file()).or_else(|| on_path(name));
        let Some(found) = found else {
            bail!("{name} is missing: install containerd and runc");
        };
        let temporary = bin.join(format!(".{name}"));
        std::fs::copy(&found, &temporary).with_context(|| format!("failed to copy {}", found.display()))?;
        std::fs::rename(&temporary, bin.join(name))?;
    }
    if unpacked.exists() {
        std::fs::remove_dir_all(&unpacked)?;
    }
    Ok(true)
}

/// The images that every node has from the start.
fn images(parts: &Parts) -> Result<bool> {
    let wanted = [(PAUSE_IMAGE, "pause", 65535), (COREDNS_IMAGE, "coredns", 0)];
    let mut built = false;
    for ((image, program, user), path) in wanted.into_iter().zip(parts.images()) {
        if path.exists() {
            continue;
        }
        let content = std::fs::read(parts.program(program))?;
        let archive = Archive::new(image)
            .file(&format!("/{program}"), Content::Program(content))
            .entrypoint(&[&format!("/{program}")]);
        archive.user(user).write(&path)?;
        built = true;
    }
    Ok(built)
}
