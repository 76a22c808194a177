//! `cargo xtask ebpf`: builds the kernel programs with the toolchain that this machine has.
//!
//! The programs need a compiler with `core` for the BPF target: rustup's nightly with rust-src, which builds
//! `core` itself, or Debian's packages, which have it built. Both link with bpf-linker.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build;
use crate::setup::{self, Install, Need};

/// The toolchain for the eBPF programs.
pub(crate) const NEEDS: [Need; 2] = [
    Need {
        what: "a Rust toolchain that builds for bpfel-unknown-none",
        present: toolchain_present,
        install: Install::Apt(&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev"]),
    },
    Need {
        what: "bpf-linker",
        present: linker_present,
        install: Install::Cargo(
            &["bpf-linker", "--no-default-features", "--features", "llvm-22"],
            &[("LLVM_PREFIX", "/usr/lib/llvm-22")],
        ),
    },
];

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "bpf-linker";
/// Debian's compiler; `rustc` on the search path may be another one.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// How to build.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Options {
    /// Build the programs that log every decision, as target/ambit-ebpf/ambit-ebpf-log.o.
    #[arg(long)]
    pub(crate) log: bool,
}

/// A toolchain that builds for the BPF target.
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
            Self::Rustup => "rustup's nightly, building core from rust-src",
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
            // aya-ebpf uses unstable features, which a stable compiler allows only with this.
            Self::Debian => command.arg("build").env("RUSTC_BOOTSTRAP", "1").env("RUSTC", DEBIAN_RUSTC),
        };
        command
    }
}

/// Whether this machine has a compiler for the programs.
fn toolchain_present() -> bool {
    Toolchain::find().is_some()
}

/// Whether this machine has the linker of the programs.
fn linker_present() -> bool {
    setup::on_path(LINKER).is_some()
}

/// Builds the object, and copies it to where the loader's build and tests look for it.
pub(crate) fn run(options: Options) -> Result<PathBuf> {
    let Some(toolchain) = Toolchain::find() else {
        bail!(
            "failed to find a Rust toolchain for {TARGET}: install rustup's nightly with rust-src, or \
             Debian's packages"
        );
    };
    let linker = setup::on_path(LINKER)
        .with_context(|| format!("failed to find {LINKER} on PATH and in cargo's folder"))?;
    build::say(&format!("toolchain for the eBPF programs: {}", toolchain.describe()));

    // A fixed folder: the loader's build script does not know the target folder.
    let folder = build::root().join("target/ambit-ebpf");
    let mut command = toolchain.cargo();
    command.args(["--release", "--locked", "--target", TARGET, "--target-dir"]).arg(folder.join("build"));
    command.current_dir(build::root().join("ebpf/programs"));
    command.env("PATH", path_with(&linker)?);
    if options.log {
        command.args(["--features", "log"]);
    }
    // BTF types of maps and values are made from debug information.
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf");
    let what = if options.log { "building the eBPF programs that log" } else { "building the eBPF programs" };
    build::step(what, &mut command)?;

    let built = folder.join("build").join(TARGET).join("release/ambit-ebpf");
    let object = folder.join(if options.log { "ambit-ebpf-log.o" } else { "ambit-ebpf.o" });
    let bytes = std::fs::read(&built).with_context(|| format!("failed to read {}", built.display()))?;
    // Written only if changed: a new modification time would rebuild everything that embeds it.
    if std::fs::read(&object).ok().as_ref() != Some(&bytes) {
        std::fs::write(&object, bytes).with_context(|| format!("failed to write {}", object.display()))?;
    }
    if options.log {
        let variable = format!("AMBIT_EBPF_OBJECT={}", object.display());
        build::say(&format!("to embed it: {variable} cargo build --package ambit-ztunnel"));
    }
    Ok(object)
}

/// The sysroot of the compiler that the command starts.
fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    own_environment(rustc);
    let output = rustc.args(["--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Removes the variables that the cargo which runs us has set for its own build.
fn own_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_a_build) {
            command.env_remove(name);
        }
    }
}

/// Whether a variable belongs to a build. Variables about the folders of cargo and rustup and about the
/// network belong to the machine.
fn is_of_a_build(name: &str) -> bool {
    const MACHINE: [&str; 6] =
        ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "RUSTUP_HOME"];
    let of_rust = name.starts_with("CARGO") || name.starts_with("RUST");
    of_rust && !MACHINE.iter().any(|beginning| name.starts_with(beginning))
}

/// The search path, with the linker's folder in front.
fn path_with(linker: &Path) -> Result<OsString> {
    let folder = linker.parent().context("failed to get the linker's folder")?.to_path_buf();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&path)))
        .context("failed to extend PATH")
}

#[cfg(test)]
mod tests {
    use super::is_of_a_build;

    #[test]
    fn variables_of_a_build_are_recognized() {
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
