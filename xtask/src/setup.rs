//! What a verb needs on the machine, and installing it where we may: root on Debian, with its packages.
//!
//! Entry point: [`ensure`]. Elsewhere it prints exactly what to run, and stops.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::build;

/// One thing a verb needs.
#[derive(Debug)]
pub(crate) struct Need {
    /// What it is, for people.
    pub(crate) what: &'static str,
    /// Whether the machine has it.
    pub(crate) present: fn() -> bool,
    /// How Debian gets it.
    pub(crate) install: Install,
}

/// How a need is met.
#[derive(Debug)]
pub(crate) enum Install {
    /// Debian packages.
    Apt(&'static [&'static str]),
    /// `cargo install …`, with these environment variables.
    Cargo(&'static [&'static str], &'static [(&'static str, &'static str)]),
    /// A Python package in a virtual environment of this name, under the target folder.
    Python(&'static str, &'static str),
}

/// Namespaces, bridges and clients for the laboratory.
pub(crate) const LAB: [Need; 3] = [
    Need { what: "ip (iproute2)", present: || on_path("ip").is_some(), install: Install::Apt(&["iproute2"]) },
    Need { what: "curl", present: || on_path("curl").is_some(), install: Install::Apt(&["curl"]) },
    Need {
        what: "Prometheus, with promtool",
        present: || on_path("prometheus").is_some() && on_path("promtool").is_some(),
        install: Install::Apt(&["prometheus"]),
    },
];

/// What is attached in the kernel, as its own tool sees it.
pub(crate) const BPFTOOL: [Need; 1] =
    [Need { what: "bpftool", present: || on_path("bpftool").is_some(), install: Install::Apt(&["bpftool"]) }];

/// Load generators and a server that is not ours.
pub(crate) const BENCH: [Need; 4] = [
    Need { what: "iperf3", present: || on_path("iperf3").is_some(), install: Install::Apt(&["iperf3"]) },
    Need { what: "wrk", present: || on_path("wrk").is_some(), install: Install::Apt(&["wrk"]) },
    Need { what: "nginx", present: || on_path("nginx").is_some(), install: Install::Apt(&["nginx-light"]) },
    Need {
        what: "taskset (util-linux)",
        present: || on_path("taskset").is_some(),
        install: Install::Apt(&["util-linux"]),
    },
];

/// An HTTP proxy to compare with.
pub(crate) const HAPROXY: [Need; 1] =
    [Need { what: "HAProxy", present: || on_path("haproxy").is_some(), install: Install::Apt(&["haproxy"]) }];

/// A sampling profiler.
pub(crate) const PERF: [Need; 1] =
    [Need { what: "perf", present: || on_path("perf").is_some(), install: Install::Apt(&["linux-perf"]) }];

/// The licence and ban checker.
pub(crate) const DENY: [Need; 1] = [Need {
    what: "cargo-deny",
    present: || on_path("cargo-deny").is_some(),
    install: Install::Cargo(&["cargo-deny", "--locked"], &[]),
}];

/// Meets every need, or fails with the commands that would.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !(need.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !may_install() {
        let lines =
            |line: fn(&Need) -> String| missing.iter().map(|need| line(need)).collect::<Vec<_>>().join("\n");
        let lacks = lines(|need| format!("  - {}", need.what));
        let commands = lines(|need| format!("  {}", need.install.as_shell()));
        bail!("this machine lacks:\n{lacks}\nrun, as root on Debian:\n{commands}");
    }
    for need in missing {
        need.install.run(need.what)?;
        if !(need.present)() {
            bail!("{} is still missing after `{}`", need.what, need.install.as_shell());
        }
    }
    Ok(())
}

/// The suites and the demo make network namespaces and load eBPF: only root may.
pub(crate) fn ensure_root(verb: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "`cargo xtask {verb}` makes network namespaces and loads eBPF programs, which only root may. Run:\n  \
         sudo --preserve-env=HOME env \"PATH=$PATH\" cargo xtask {verb}"
    )
}

impl Install {
    fn as_shell(&self) -> String {
        match self {
            Self::Apt(packages) => format!("apt-get update && apt-get install -y {}", packages.join(" ")),
            Self::Cargo(arguments, environment) => {
                let variables = environment.iter().map(|(name, value)| format!("{name}={value}"));
                let words = variables.chain(["cargo install".to_owned()]).collect::<Vec<_>>();
                format!("{} {}", words.join(" "), arguments.join(" "))
            }
            Self::Python(name, package) => {
                let folder = python_environment(name);
                format!("python3 -m venv {0} && {0}/bin/pip install {package}", folder.display())
            }
        }
    }

    fn run(&self, what: &str) -> Result<()> {
        match self {
            Self::Apt(packages) => {
                build::step("apt-get update", Command::new("apt-get").args(["-q", "update"]))?;
                let mut command = Command::new("apt-get");
                // RUNLEVEL=1: a server that comes with a package must not start by itself.
                command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
                command.args(["-q", "-y", "--no-install-recommends", "install"]).args(*packages);
                build::step(&format!("installing {what} ({})", packages.join(" ")), &mut command)
            }
            Self::Cargo(arguments, environment) => {
                let mut command = build::cargo(&["install"]);
                command.args(*arguments).envs(environment.iter().copied());
                // Outside the workspace, so that neither its settings nor its target folder take part.
                command.current_dir("/").env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
                build::step(&format!("installing {what} from source (about a minute)"), &mut command)
            }
            Self::Python(name, package) => {
                let folder = python_environment(name);
                let mut make = Command::new("python3");
                make.args(["-m", "venv"]).arg(&folder);
                build::step(&format!("a Python environment in {}", folder.display()), &mut make)?;
                let mut pip = Command::new(folder.join("bin/pip"));
                pip.args(["--disable-pip-version-check", "install", "--quiet", package]);
                build::step(&format!("installing {what} ({package})"), &mut pip)
            }
        }
    }
}

/// Root on a machine with apt: there we may install.
fn may_install() -> bool {
    nix::unistd::geteuid().is_root()
        && Path::new("/etc/debian_version").exists()
        && on_path("apt-get").is_some()
}

/// Where a Python environment of ours lies.
pub(crate) fn python_environment(name: &str) -> PathBuf {
    build::target().join("tools").join(name)
}

/// Debian has Python without the module that fills a new environment.
pub(crate) fn venv_present() -> bool {
    let modules =
        Command::new("python3").args(["-c", "import venv, ensurepip"]).stderr(Stdio::null()).status();
    modules.is_ok_and(|status| status.success())
}

/// Where a program is found: PATH, then cargo's own folder, which a root shell often lacks.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let folders = std::env::split_paths(&path).chain(home.map(|home| home.join("bin")));
    folders.map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}
