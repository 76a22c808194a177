//! The crate arrows of ARCHITECTURE.md, and files that no module declares.
//!
//! Entry points: [`crates`] and [`orphans`]; both return what is wrong, one line each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::build;

/// Which of our crates each of our crates may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("ambit-abi", &[]),
    ("ambit-core", &[]),
    ("ambit-loader", &["ambit-abi"]),
    ("ambit-xds", &["ambit-core"]),
    ("ambit-crd", &["ambit-core"]),
    ("ambit-enrol", &["ambit-core"]),
    ("ambit-diag", &[]),
    ("ambit-kube", &["ambit-core"]),
    ("ambit-hbone", &["ambit-core"]),
    ("ambit-daemon-kit", &["ambit-core"]),
    ("ambit-certificates", &["ambit-core", "ambit-daemon-kit", "ambit-hbone"]),
    // What any proxy of the mesh does, without pods or eBPF: never the loader, enrolment or sock_diag.
    ("ambit-proxy", &["ambit-certificates", "ambit-core", "ambit-daemon-kit", "ambit-hbone", "ambit-xds"]),
    (
        "ambit-ztunnel",
        &[
            "ambit-certificates",
            "ambit-core",
            "ambit-daemon-kit",
            "ambit-diag",
            "ambit-enrol",
            "ambit-hbone",
            "ambit-loader",
            "ambit-proxy",
            "ambit-xds",
        ],
    ),
    // Like ztunnel, without pods and without the kernel's side.
    (
        "ambit-waypoint",
        &["ambit-certificates", "ambit-core", "ambit-daemon-kit", "ambit-hbone", "ambit-proxy", "ambit-xds"],
    ),
    ("ambit-controller", &["ambit-core", "ambit-crd", "ambit-daemon-kit", "ambit-kube", "ambit-xds"]),
    ("ambit-cni", &["ambit-core", "ambit-daemon-kit", "ambit-enrol", "ambit-kube"]),
    // The enrolment rule and the API client's helpers, nothing else: it asks the cluster and the daemons over
    // their interfaces.
    ("ambit-cli", &["ambit-core", "ambit-kube"]),
    ("ambit-harness", &[]),
    // Waiting for states.
    ("ambit-cluster", &["ambit-harness"]),
    ("ambit-apps", &[]),
    // One suite plays the controller.
    ("ambit-suites", &["ambit-cluster", "ambit-core", "ambit-harness", "ambit-xds"]),
    ("xtask", &["ambit-cluster", "ambit-harness"]),
];

/// Libraries that would make `core` impure.
const NOT_IN_CORE: &[&str] =
    &["aya", "h2", "hyper", "kube", "libc", "nix", "rand", "rustls", "socket2", "tokio", "tonic", "tracing"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Arrows that point where they must not.
pub(crate) fn crates() -> Result<Vec<String>> {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in packages()? {
        let Some(may_use) = allowed.get(package.name.as_str()) else {
            wrong.push(format!("{}: not in the list of crates in xtask/src/arrows.rs", package.name));
            continue;
        };
        // Tests may look at more than the code does.
        for dependency in package.dependencies.iter().filter(|it| it.kind.as_deref() != Some("dev")) {
            let name = dependency.name.as_str();
            if allowed.contains_key(name) && !may_use.contains(&name) {
                wrong.push(format!("{} must not use {name}", package.name));
            }
            if package.name == "ambit-core" && NOT_IN_CORE.contains(&name) {
                wrong.push(format!("ambit-core is pure and synchronous: it must not use {name}"));
            }
        }
    }
    Ok(wrong)
}

/// Source files that no module declares: never compiled, so never checked.
pub(crate) fn orphans() -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut folders: Vec<PathBuf> = Vec::new();
    for package in packages()? {
        folders.push(package.manifest_path.parent().context("a manifest lies in a folder")?.join("src"));
    }
    folders.push(build::root().join("ebpf/programs/src"));
    for source in folders {
        let mut declared = BTreeSet::new();
        let mut files = Vec::new();
        rust_files(&source, &mut files)?;
        for file in &files {
            if is_root(file, &source) {
                follow(file, &mut declared)?;
            }
        }
        for file in files.iter().filter(|file| !declared.contains(*file)) {
            wrong.push(format!("{}: no module declares it", file.display()));
        }
    }
    Ok(wrong)
}

/// `lib.rs`, `main.rs` and the files of `bin/`.
fn is_root(file: &Path, source: &Path) -> bool {
    let folder = file.parent().unwrap_or(source);
    let name = file.file_name().unwrap_or_default();
    folder == source.join("bin")
        || (folder == source && (name == "lib.rs" || name == "main.rs"))
        || (folder.parent() == Some(&source.join("bin")) && name == "main.rs")
}

/// Notes a file and every module file it declares, however deep.
fn follow(file: &Path, declared: &mut BTreeSet<PathBuf>) -> Result<()> {
    if !declared.insert(file.to_path_buf()) {
        return Ok(());
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    let folder = file.parent().context("a file lies in a folder")?;
    let stem = file.file_stem().unwrap_or_default();
    let owns_folder = ["lib", "main", "mod"].iter().any(|root| stem == *root)
        || folder.file_name().is_some_and(|name| name == "bin");
    let children = if owns_folder { folder.to_path_buf() } else { folder.join(stem) };
    let mut path = None;
    for line in text.lines() {
        if let Some(name) = declaration(line) {
            let candidates = match path.take() {
                Some(path) => vec![folder.join(path)],
                None => vec![children.join(format!("{name}.rs")), children.join(name).join("mod.rs")],
            };
            for file in candidates.into_iter().filter(|file| file.is_file()) {
                follow(&file, declared)?;
            }
        }
        path = path_attribute(line).or(path);
    }
    Ok(())
}

/// The module that a line like `pub mod name;` declares.
fn declaration(line: &str) -> Option<&str> {
    let mut words = line.trim().strip_suffix(';')?.split_whitespace().rev();
    let name = words.next()?;
    (words.next()? == "mod").then_some(name)
}

/// The file that `#[path = "file.rs"]` names for the module declared next.
fn path_attribute(line: &str) -> Option<&str> {
    line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]")
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn packages() -> Result<Vec<Package>> {
    let output = build::cargo(&["metadata", "--format-version", "1", "--no-deps"]).output()?;
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("failed to parse the output of cargo metadata")?;
    Ok(metadata.packages)
}

#[cfg(test)]
mod tests {
    use super::{declaration, path_attribute};

    #[test]
    fn path_attributes() {
        let rows = [
            ("a file for the next module", "#[path = \"tests_of_a.rs\"]", Some("tests_of_a.rs")),
            ("another attribute", "#[cfg(test)]", None),
        ];
        for (name, line, expected) in rows {
            assert_eq!(path_attribute(line), expected, "{name}");
        }
    }

    #[test]
    fn mod_declarations_are_parsed() {
        let rows = [
            ("plain", "mod a;", Some("a")),
            ("public", "pub mod a_b;", Some("a_b")),
            ("within the crate", "    pub(crate) mod c;", Some("c")),
            ("an inline module declares no file", "mod tests {", None),
            ("a use is no module", "use a::b;", None),
            ("a comment is no module", "// mod a", None),
        ];
        for (name, line, expected) in rows {
            assert_eq!(declaration(line), expected, "{name}");
        }
    }
}
