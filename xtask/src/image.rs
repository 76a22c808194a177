//! `cargo xtask image`: OCI archives of everything that runs in a cluster, made without a container engine.
//!
//! The programs are linked statically, so an image is one layer with nothing else in it.
//!
//! Entry point: [`run`].

mod architecture;
mod oci;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use self::architecture::Architecture;
use crate::{build, ebpf, setup};

/// What to build, and where to put it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the archives go; TARGET/images by default.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// What the images are called: REGISTRY/ambit/COMPONENT:TAG.
    #[arg(long, default_value = "docker.io")]
    registry: String,
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// Quick to build, or quick to run.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// The nodes' processors; another than this machine's needs its cross compiler.
    #[arg(long, value_enum, default_value_t = Architecture::HERE)]
    arch: Architecture,
    /// Also the image of the programs that tests run in pods.
    #[arg(long)]
    tests: bool,
}

/// How the programs are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// One image.
struct Image {
    component: &'static str,
    /// Programs, found in cargo's folder, which lie in the image's root.
    programs: &'static [&'static str],
    /// The program that runs where nothing else is said.
    entrypoint: &'static str,
}

const IMAGES: [Image; 5] = [
    Image { component: "controller", programs: &["controller"], entrypoint: "/controller" },
    Image { component: "ztunnel", programs: &["ztunnel"], entrypoint: "/ztunnel" },
    Image { component: "waypoint", programs: &["waypoint"], entrypoint: "/waypoint" },
    Image { component: "cni", programs: &["ambit-cni", "ambit-node"], entrypoint: "/ambit-node" },
    Image { component: "cli", programs: &["ambit"], entrypoint: "/ambit" },
];

/// What pods run in tests.
const TESTS: Image =
    Image { component: "tests", programs: &["shop", "ambit-load", "ambit-probed"], entrypoint: "/shop" };

/// Builds the programs and writes an archive of each image.
pub(crate) fn run(options: &Options) -> Result<()> {
    options.arch.ensure()?;
    setup::ensure(&ebpf::NEEDS)?;
    // The kernel programs are the same for every processor.
    ebpf::run(ebpf::Options::default())?;
    let images: Vec<&Image> = IMAGES.iter().chain(options.tests.then_some(&TESTS)).collect();
    let name = if options.arch == Architecture::HERE {
        "images".to_owned()
    } else {
        format!("images-{}", options.arch.name())
    };
    let folder = options.output.clone().unwrap_or_else(|| build::target().join(name));
    for archive in write(&images, options, &compile(options)?, &folder)? {
        println!("{}", archive.display());
    }
    Ok(())
}

/// The images that suites load, of the programs that [`build::everything`] has built.
pub(crate) fn for_tests() -> Result<()> {
    let options = Options {
        output: None,
        registry: "docker.io".to_owned(),
        tag: env!("CARGO_PKG_VERSION").to_owned(),
        profile: Profile::Dev,
        arch: Architecture::HERE,
        tests: true,
    };
    let images: Vec<&Image> = IMAGES.iter().chain([&TESTS]).collect();
    write(&images, &options, &build::binaries(), &test_folder())?;
    Ok(())
}

/// Where [`for_tests`] puts them.
pub(crate) fn test_folder() -> PathBuf {
    build::target().join("images-for-tests")
}

fn write(images: &[&Image], options: &Options, programs: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder.join("programs"))
        .with_context(|| format!("failed to create {}", folder.display()))?;
    let mut archives = Vec::new();
    for image in images {
        let mut files = Vec::new();
        for name in image.programs {
            let content = stripped(&programs.join(name), options.arch)?;
            // Beside the archives, for those who build with a container engine (deploy/images/).
            let copy = folder.join("programs").join(name);
            std::fs::write(&copy, &content)
                .and_then(|()| std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("failed to write {}", copy.display()))?;
            files.push(oci::File { path: (*name).to_owned(), content });
        }
        let name = format!("{}/ambit/{}:{}", options.registry, image.component, options.tag);
        let archive = folder.join(format!("{}.tar", image.component));
        let size = oci::write(&archive, &name, options.arch.name(), &files, image.entrypoint)?;
        build::say(&format!("{name}: {} KB", size / 1000));
        archives.push(archive);
    }
    Ok(archives)
}

/// Builds every program and says in which folder they lie.
fn compile(options: &Options) -> Result<PathBuf> {
    let mut command = build::cargo(&["build", "--workspace", "--bins", "--exclude", "xtask"]);
    if options.profile == Profile::Release {
        command.arg("--release");
    }
    options.arch.prepare(&mut command);
    build::step("building the programs of the images", &mut command)?;
    let profile = match options.profile {
        Profile::Dev => "debug",
        Profile::Release => "release",
    };
    Ok(build::target().join(options.arch.target()).join(profile))
}

/// A program without its symbols: half of its size, and nothing in an image could read them.
fn stripped(program: &Path, architecture: Architecture) -> Result<Vec<u8>> {
    ensure_runs(program, architecture)?;
    let output = program.with_extension("stripped");
    let mut strip = Command::new(architecture.tool("strip"));
    strip.arg("-o").arg(&output).arg(program);
    let status = build::status(&mut strip)?;
    ensure!(status.success(), "strip (binutils) ended with {status} for {}", program.display());
    let content = std::fs::read(&output).with_context(|| format!("failed to read {}", output.display()))?;
    std::fs::remove_file(&output).with_context(|| format!("failed to remove {}", output.display()))?;
    Ok(content)
}

/// An image from scratch has no loader: a program that asks for one would not start. Nor would one for
/// another processor.
fn ensure_runs(program: &Path, architecture: Architecture) -> Result<()> {
    let content = std::fs::read(program).with_context(|| format!("failed to read {}", program.display()))?;
    let machine = content.get(18..20).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    let right = machine == Some(architecture.elf_machine());
    ensure!(right, "{} is not a program for {}", program.display(), architecture.name());
    ensure!(!asks_for_loader(&content), "{} is not linked statically", program.display());
    Ok(())
}

/// Whether an ELF file (64 bits, little-endian) has a program header that names an interpreter.
fn asks_for_loader(elf: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, bytes: usize| {
        elf.get(at..at + bytes)
            .map(|bytes| bytes.iter().rev().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte)))
    };
    let headers = || {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        Some((0..count).filter_map(move |index| usize::try_from(start + index * size).ok()))
    };
    headers().is_none_or(|mut headers| headers.any(|at| number(at, 4) == Some(u64::from(INTERPRETER))))
}

#[cfg(test)]
mod tests {
    use super::asks_for_loader;

    #[test]
    fn program_interpreter_is_found() {
        assert!(asks_for_loader(b""), "what is not understood is not taken");
        assert!(asks_for_loader(&std::fs::read("/bin/ls").unwrap()), "Debian's are dynamic");
        let mut elf = vec![0; 176];
        (elf[32], elf[54], elf[56]) = (64, 56, 2);
        elf[64] = 1;
        elf[120] = 1;
        assert!(!asks_for_loader(&elf), "two segments to be loaded");
        elf[120] = 3;
        assert!(asks_for_loader(&elf), "the second is an interpreter's name");
    }
}
