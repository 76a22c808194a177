//! The processors that images are made for: this machine's, or another's by cross-building.
//!
//! Entry point: [`Architecture::ensure`] before [`Architecture::prepare`].

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

/// A processor, by OCI's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// This machine's.
    pub(crate) const HERE: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    /// The name in an image's configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's target; this machine's own is the one that everything else is built for.
    pub(crate) fn target(self) -> &'static str {
        match self {
            here if here == Self::HERE => env!("AMBIT_TARGET"),
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The prefix of the GNU tools that build for it from another machine.
    fn prefix(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu-",
            Self::Arm64 => "aarch64-linux-gnu-",
        }
    }

    /// The machine in an ELF header.
    pub(crate) fn elf_machine(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }

    /// A GNU tool for it.
    pub(crate) fn tool(self, name: &str) -> String {
        if self == Self::HERE { name.to_owned() } else { format!("{}{name}", self.prefix()) }
    }

    /// Says what has to be installed before anything is built for it here.
    pub(crate) fn ensure(self) -> Result<()> {
        let missing = self.missing(standard_library, runs);
        if missing.is_empty() {
            return Ok(());
        }
        bail!("building images for {} needs more on this machine:\n  {}", self.name(), missing.join("\n  "));
    }

    fn missing(self, library: impl Fn(&str) -> bool, runs: impl Fn(&str) -> bool) -> Vec<String> {
        let mut missing = Vec::new();
        if self == Self::HERE {
            return missing;
        }
        let target = self.target();
        if !library(target) {
            missing.push(format!("Rust's standard library for it: rustup target add {target}"));
        }
        if !runs(&self.tool("gcc")) || !runs(&self.tool("strip")) {
            let packages = self.prefix().trim_end_matches('-').replace('_', "-");
            missing.push(format!(
                "GNU's compiler and tools for it: apt-get install gcc-{packages} g++-{packages}"
            ));
        }
        missing
    }

    /// Has cargo build for it, with the compiler for C and the linker that fit.
    pub(crate) fn prepare(self, cargo: &mut Command) {
        if self == Self::HERE {
            return;
        }
        let (target, compiler) = (self.target(), self.tool("gcc"));
        let name = target.replace('-', "_");
        cargo.args(["--target", target]);
        cargo.env(format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()), &compiler);
        cargo.env(format!("CC_{name}"), &compiler).env(format!("CXX_{name}"), self.tool("g++"));
        cargo.env(format!("AR_{name}"), self.tool("ar"));
    }
}

/// Whether the compiler has the standard library for a target.
fn standard_library(target: &str) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output();
    let folder = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    folder.is_some_and(|folder| {
        let files = std::fs::read_dir(PathBuf::from(folder.trim())).into_iter().flatten().flatten();
        files.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
    })
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let other =
            if Architecture::HERE == Architecture::Amd64 { Architecture::Arm64 } else { Architecture::Amd64 };
        let rows = [
            ("all there", other, true, true, 0),
            ("no standard library", other, false, true, 1),
            ("nothing", other, false, false, 2),
            ("nothing is needed for this machine", Architecture::HERE, false, false, 0),
        ];
        for (name, architecture, library, tools, expected) in rows {
            let missing = architecture.missing(|_| library, |_| tools);
            assert_eq!(missing.len(), expected, "{name}: {missing:?}");
        }
        let missing = Architecture::Arm64.missing(|_| false, |_| false).join(" ");
        if Architecture::HERE == Architecture::Amd64 {
            assert!(missing.contains("rustup target add aarch64-unknown-linux-gnu"), "{missing}");
            assert!(missing.contains("gcc-aarch64-linux-gnu"), "{missing}");
        }
    }

    #[test]
    fn cargo_is_told_the_target_and_its_linker() {
        let mut cargo = Command::new("cargo");
        Architecture::HERE.prepare(&mut cargo);
        assert_eq!(cargo.get_args().count(), 0, "as everything else is built");
        if Architecture::HERE == Architecture::Amd64 {
            Architecture::Arm64.prepare(&mut cargo);
            let arguments: Vec<_> = cargo.get_args().collect();
            assert_eq!(arguments, ["--target", "aarch64-unknown-linux-gnu"]);
            let linker =
                cargo.get_envs().find(|(name, _)| *name == "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER");
            assert_eq!(linker.unwrap().1.unwrap(), "aarch64-linux-gnu-gcc");
        }
    }
}
