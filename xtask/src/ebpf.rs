//! `cargo xtask ebpf`: builds the kernel programs with whichever toolchain this machine has.
//!
//! They need a compiler with `core` for the BPF target: rustup's nightly with rust-src (it builds `core`
//! itself), or Debian's packages (which bring it built). Both link with bpf-linker.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, setup};

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "bpf-linker";
/// Debian's compiler, whatever `rustc` is on the path.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// What can build for the BPF target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toolchain {
    Rustup,
    Debian,
}

impl Toolchain {
    fn find() -> Option<Self> {
        let rustup = || sysroot(Command::new("rustup").args(["run", "nightly", "rustc"]));
        if rustup().is_some_and(|root| root.join("lib/rustlib/src/rust/library/core").is_dir()) {
            return Some(Self::Rustup);
        }
        let has_core = |root: PathBuf| {
            let mut files = std::fs::read_dir(root.join("lib/rustlib").join(TARGET).join("lib")).ok()?;
            files.find_map(|file| file.ok()?.file_name().to_str()?.starts_with("libcore-").then_some(()))
        };
        let debian = sysroot(&mut Command::new(DEBIAN_RUSTC)).and_then(has_core);
        (debian.is_some() && Path::new(DEBIAN_CARGO).is_file()).then_some(Self::Debian)
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Rustup => "rustup's nightly, which builds core from rust-src",
            Self::Debian => "Debian's rustc-web, with core from libstd-rust-web-dev-bpf",
        }
    }

    fn cargo(self) -> Command {
        let mut command = match self {
            Self::Rustup => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Self::Debian => Command::new(DEBIAN_CARGO),
        };
        own_environment(&mut command);
        match self {
            Self::Rustup => command.args(["build", "-Zbuild-std=core"]),
            // aya-ebpf asks for features that a stable compiler has only with this.
            Self::Debian => command.arg("build").env("RUSTC_BOOTSTRAP", "1").env("RUSTC", DEBIAN_RUSTC),
        };
        command
    }
}

/// Whether this machine has a compiler for the programs.
pub(crate) fn toolchain_present() -> bool {
    Toolchain::find().is_some()
}

/// Whether this machine has their linker.
pub(crate) fn linker_present() -> bool {
    setup::on_path(LINKER).is_some()
}

/// Builds the object and puts it where the loader's build looks for it.
pub(crate) fn run() -> Result<PathBuf> {
    let Some(toolchain) = Toolchain::find() else {
        bail!(
            "no Rust toolchain here builds for {TARGET}: rustup's nightly with rust-src does, or Debian's \
             packages"
        );
    };
    let linker = setup::on_path(LINKER)
        .with_context(|| format!("{LINKER} is neither on PATH nor in cargo's folder"))?;
    build::say(&format!("toolchain for the eBPF programs: {}", toolchain.describe()));

    // A fixed place: the loader's build script does not know where cargo puts other things.
    let folder = build::root().join("target/ambit-ebpf");
    let mut command = toolchain.cargo();
    command.args(["--release", "--locked", "--target", TARGET, "--target-dir"]).arg(folder.join("build"));
    command.current_dir(build::root().join("ebpf/programs"));
    command.env("PATH", path_with(&linker)?);
    // Types of maps and values come from debug information.
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf");
    build::step("building the eBPF programs", &mut command)?;

    let built = folder.join("build").join(TARGET).join("release/ambit-ebpf");
    let object = folder.join("ambit-ebpf.o");
    let bytes = std::fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    // A new date alone would rebuild everything that embeds it.
    if std::fs::read(&object).ok().as_ref() != Some(&bytes) {
        std::fs::write(&object, bytes).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(object)
}

/// Where the compiler that the command starts has its libraries.
fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    own_environment(rustc);
    let output = rustc.args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Removes what the cargo that runs us left in the environment for its own build.
fn own_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_a_build) {
            command.env_remove(name);
        }
    }
}

/// Whether a variable belongs to one build; where cargo and rustup live and how they reach the network is the
/// machine's.
fn is_of_a_build(name: &str) -> bool {
    const MACHINE: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "RUSTUP_HOME"];
    let of_rust = name.starts_with("CARGO") || name.starts_with("RUST");
    of_rust && !MACHINE.iter().any(|beginning| name.starts_with(beginning))
}

/// The search path, with the linker's folder in front.
fn path_with(linker: &Path) -> Result<OsString> {
    let folder = linker.parent().context("a program lies in a folder")?.to_path_buf();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&path)))
        .context("cannot extend PATH")
}

#[cfg(test)]
mod tests {
    use super::is_of_a_build;

    #[test]
    fn variables() {
        let rows = [
            ("CARGO", true),
            ("CARGO_TARGET_DIR", true),
            ("CARGO_ENCODED_RUSTFLAGS", true),
            ("CARGO_PKG_NAME", true),
            ("RUSTC", true),
            ("RUSTC_WRAPPER", true),
            ("RUSTFLAGS", true),
            ("RUSTUP_TOOLCHAIN", true),
            ("CARGO_HOME", false),
            ("RUSTUP_HOME", false),
            ("CARGO_HTTP_CAINFO", false),
            ("CARGO_REGISTRIES_CRATES_IO_PROTOCOL", false),
            ("PATH", false),
        ];
        for (name, expected) in rows {
            assert_eq!(is_of_a_build(name), expected, "{name}");
        }
    }
}
