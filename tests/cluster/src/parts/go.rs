//! Programs built from the Go module proxy.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::pause;
use super::tools::{fresh, on_path, run, say};
use super::versions::{
    CNI_PLUGINS, COREDNS, ETCD, GATEWAY_API, GO, H2SPEC, H2SPEC_LIBRARIES, HELM, KUBERNETES, LIBRARIES,
};

/// A main module whose programs are built.
struct Module {
    /// What it is, for people, with how long it took on two cores with nothing cached.
    what: &'static str,
    path: &'static str,
    version: &'static str,
    /// Package below the module, and what its program is called here.
    programs: &'static [(&'static str, &'static str)],
    /// Modules that it uses, and their versions, where it does not say which itself.
    libraries: &'static [(&'static str, &'static str)],
    /// Below the folder of the parts.
    into: &'static str,
}

const SIMPLE: [Module; 4] = [
    Module {
        what: "etcd (about half a minute)",
        path: "go.etcd.io/etcd/server/v3",
        version: ETCD,
        programs: &[("", "etcd")],
        libraries: &[],
        into: "bin",
    },
    Module {
        what: "CoreDNS (about four minutes)",
        path: "github.com/coredns/coredns",
        version: COREDNS,
        programs: &[("", "coredns")],
        libraries: &[],
        into: "bin",
    },
    Module {
        what: "Helm (some minutes)",
        path: "helm.sh/helm/v3",
        version: HELM,
        programs: &[("/cmd/helm", "helm")],
        libraries: &[],
        into: "bin",
    },
    Module {
        what: "the CNI plugins",
        path: "github.com/containernetworking/plugins",
        version: CNI_PLUGINS,
        programs: &[
            ("/plugins/main/bridge", "bridge"),
            ("/plugins/main/loopback", "loopback"),
            ("/plugins/ipam/host-local", "host-local"),
            ("/plugins/meta/portmap", "portmap"),
        ],
        libraries: &[],
        into: "cni",
    },
];

/// The conformance suite of HTTP/2, which no cluster needs.
const H2SPEC_MODULE: Module = Module {
    what: "h2spec (about half a minute)",
    path: "github.com/summerwind/h2spec",
    version: H2SPEC,
    programs: &[("/cmd/h2spec", "h2spec")],
    libraries: &H2SPEC_LIBRARIES,
    into: "bin",
};

const KUBERNETES_PROGRAMS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];

/// A definition of the Gateway API, by which the others are known to be there.
const DEFINITION: &str = "gateway.networking.k8s.io_gateways.yaml";

/// Whether a toolchain is there, or nothing is to be built.
pub fn go_present(folder: &Path) -> bool {
    missing(folder).is_empty() || find(folder).is_ok()
}

/// What is to be built.
fn missing(folder: &Path) -> Vec<&'static str> {
    let simple =
        SIMPLE.iter().flat_map(|module| module.programs.iter().map(|(_, name)| (module.into, *name)));
    let kubernetes = KUBERNETES_PROGRAMS.iter().map(|name| ("bin", *name));
    let all = simple.chain(kubernetes).chain([("bin", "pause"), ("gateway-api", DEFINITION)]);
    all.filter(|(into, name)| !folder.join(into).join(name).exists()).map(|(_, name)| name).collect()
}

/// Whether h2spec is there, or a toolchain that builds it.
pub fn h2spec_present(folder: &Path) -> bool {
    folder.join("bin/h2spec").exists() || find(folder).is_ok()
}

/// h2spec in this folder; builds it if it is missing.
pub fn h2spec(folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder.join("bin"))
        .with_context(|| format!("failed to create {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let program = folder.join("bin/h2spec");
    if !program.exists() {
        let go = Go { program: find(&folder)?, folder };
        go.simple(&H2SPEC_MODULE)?;
    }
    Ok(program)
}

/// Builds what is missing; says whether anything was.
pub(super) fn build(folder: &Path) -> Result<bool> {
    let missing = missing(folder);
    if missing.is_empty() {
        return Ok(false);
    }
    let go = Go::new(folder)?;
    say("building the parts of the cluster from source, once: a quarter of an hour on two cores");
    if missing.contains(&"pause") {
        go.pause()?;
    }
    if missing.contains(&DEFINITION) {
        go.gateway_api()?;
    }
    if KUBERNETES_PROGRAMS.iter().any(|name| missing.contains(name)) {
        go.kubernetes()?;
    }
    let wanted = |module: &&Module| module.programs.iter().any(|(_, name)| missing.contains(name));
    SIMPLE.iter().filter(wanted).try_for_each(|module| go.simple(module))?;
    Ok(true)
}

/// A Go toolchain and where it works.
pub(super) struct Go {
    program: PathBuf,
    pub(super) folder: PathBuf,
}

impl Go {
    /// The one of this machine, for the parts in a folder.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        Ok(Self { program: find(folder)?, folder: folder.to_path_buf() })
    }

    pub(super) fn command(&self, inside: &Path) -> Command {
        let mut command = Command::new(&self.program);
        // Static, and whatever toolchain there is: nothing else is downloaded behind our back.
        command.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=mod");
        command.env_remove("GOOS").env_remove("GOARCH").current_dir(inside);
        command
    }

    fn simple(&self, module: &Module) -> Result<()> {
        let inside = fresh(&self.folder.join("build"))?;
        let Module { what, path, version, .. } = module;
        let mut text = format!("module ambit.dev/parts\n\ngo 1.25.0\n\nrequire {path} {version}\n");
        for (library, version) in module.libraries {
            writeln!(text, "require {library} {version}")?;
        }
        std::fs::write(inside.join("go.mod"), text)?;
        for (package, name) in module.programs {
            let package = format!("{path}{package}");
            let mut command = self.command(&inside);
            command.args(["build", "-trimpath", "-ldflags", "-s -w", "-o", name, &package]);
            run(&format!("building {what}: {name}"), &mut command)?;
        }
        let names: Vec<&str> = module.programs.iter().map(|(_, name)| *name).collect();
        self.take(&inside, &names, module.into)
    }

    fn pause(&self) -> Result<()> {
        let inside = fresh(&self.folder.join("build"))?;
        std::fs::write(inside.join("go.mod"), "module ambit.dev/pause\n\ngo 1.25\n")?;
        std::fs::write(inside.join("main.go"), pause::SOURCE)?;
        let mut command = self.command(&inside);
        run("building pause", command.args(["build", "-trimpath", "-ldflags", "-s -w", "-o", "pause", "."]))?;
        self.take(&inside, &["pause"], "bin")
    }

    /// The programs of Kubernetes itself, in one go.
    ///
    /// Its go.mod replaces the libraries by folders of its repository, which its published module does not
    /// contain: here they are replaced by the same libraries as published.
    fn kubernetes(&self) -> Result<()> {
        let inside = fresh(&self.folder.join("build"))?;
        let description = self.download(&inside, &format!("k8s.io/kubernetes@v{KUBERNETES}"))?;
        let upstream = description["GoMod"].as_str().context("go mod download names no go.mod")?;
        std::fs::write(inside.join("go.mod"), go_mod(&std::fs::read_to_string(upstream)?)?)?;

        let (major, minor) = KUBERNETES.split_once('.').context("a version has dots")?;
        let minor = minor.split('.').next().unwrap_or(minor);
        let package = "k8s.io/component-base/version";
        // Without these kubectl and the kubelets refuse the version.
        let flags = format!(
            "-s -w -X {package}.gitVersion=v{KUBERNETES} -X {package}.gitMajor={major} -X \
             {package}.gitMinor={minor} -X {package}.gitTreeState=clean"
        );
        let mut command = self.command(&inside);
        command.args(["build", "-trimpath", "-ldflags", &flags, "-o", "./"]);
        command.args(KUBERNETES_PROGRAMS.map(|name| format!("k8s.io/kubernetes/cmd/{name}")));
        run(&format!("building Kubernetes {KUBERNETES} (about six minutes)"), &mut command)?;
        self.take(&inside, &KUBERNETES_PROGRAMS, "bin")
    }

    /// The definitions of the Gateway API lie in its module.
    fn gateway_api(&self) -> Result<()> {
        let inside = fresh(&self.folder.join("build"))?;
        let module = self.download(&inside, &format!("sigs.k8s.io/gateway-api@{GATEWAY_API}"))?;
        let folder = module["Dir"].as_str().context("go mod download names no folder")?;
        for entry in std::fs::read_dir(Path::new(folder).join("config/crd/standard"))? {
            let path = entry?.path();
            let name = path.file_name().context("a file has a name")?;
            let text = std::fs::read(&path)?;
            // Written anew: files of the module cache are read-only.
            std::fs::write(inside.join(name), text)?;
            std::fs::rename(inside.join(name), self.folder.join("gateway-api").join(name))?;
        }
        std::fs::remove_dir_all(inside)?;
        Ok(())
    }

    /// What `go mod download` says of a module.
    fn download(&self, inside: &Path, module: &str) -> Result<serde_json::Value> {
        let mut download = self.command(inside);
        let output =
            download.args(["mod", "download", "-json", module]).output().context("failed to start go")?;
        ensure!(output.status.success(), "go mod download: {}", String::from_utf8_lossy(&output.stdout));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Moves finished programs to where they are looked for.
    fn take(&self, inside: &Path, names: &[&str], into: &str) -> Result<()> {
        for name in names {
            std::fs::rename(inside.join(name), self.folder.join(into).join(name))?;
        }
        std::fs::remove_dir_all(inside)?;
        Ok(())
    }
}

/// The go.mod of a module of ours that has the programs of Kubernetes in it, from Kubernetes' own.
fn go_mod(upstream: &str) -> Result<String> {
    let mut text = String::new();
    for line in upstream.lines() {
        if line.starts_with("module ") {
            text.push_str("module ambit.dev/parts\n");
        } else if let Some((left, right)) = line.split_once(" => ./staging/src/") {
            writeln!(text, "{left} => {right} {LIBRARIES}")?;
        } else if let Some(left) = line.strip_suffix(" v0.0.0") {
            writeln!(text, "{left} {LIBRARIES}")?;
        } else {
            writeln!(text, "{line}")?;
        }
    }
    writeln!(text, "\nrequire k8s.io/kubernetes v{KUBERNETES}")?;
    Ok(text)
}

/// A Go toolchain that is new enough: on PATH, or where `cargo xtask` puts one.
fn find(folder: &Path) -> Result<PathBuf> {
    let beside = folder.parent().map(|tools| tools.join("go/bin/go"));
    let candidates = on_path("go").into_iter().chain(beside);
    let found = candidates.into_iter().find(|go| version(go).is_some_and(|version| version >= GO));
    found.with_context(|| {
        format!("Go {}.{} or later is missing: `cargo xtask cluster up` gets it, or install it", GO.0, GO.1)
    })
}

/// What `go version` says: `go version go1.26.8 linux/amd64`.
fn version(go: &Path) -> Option<(u32, u32)> {
    let output = Command::new(go).arg("version").env("GOTOOLCHAIN", "local").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::go_mod;

    #[test]
    fn kubernetes_go_mod() {
        let rows = [
            ("its name", "module k8s.io/kubernetes", "module ambit.dev/parts"),
            ("a library required", "\tk8s.io/api v0.0.0", "\tk8s.io/api v0.34.2"),
            (
                "a library replaced",
                "\tk8s.io/api => ./staging/src/k8s.io/api",
                "\tk8s.io/api => k8s.io/api v0.34.2",
            ),
            ("anything else", "\tgolang.org/x/net v0.38.0", "\tgolang.org/x/net v0.38.0"),
        ];
        for (name, line, expected) in rows {
            let text = go_mod(line).expect("a go.mod");
            assert_eq!(text.lines().next(), Some(expected), "{name}");
            assert!(text.ends_with("require k8s.io/kubernetes v1.34.2\n"), "{name}");
        }
    }
}
