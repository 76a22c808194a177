//! How files are laid out: lines that are too wide, `mod.rs`, `#[path]`, libraries without a warning for
//! missing documentation.
//!
//! Entry point: [`problems`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build;

/// The width that rustfmt gives code; comments and strings keep it too.
const RUST_COLUMNS: usize = 110;
/// The width of Markdown prose.
const PROSE_COLUMNS: usize = 120;
/// Folders with generated files.
const GENERATED: [&str; 3] = ["target", ".git", "corpus"];

/// Every problem in the repository, one line each.
pub(crate) fn problems() -> Result<Vec<String>> {
    let root = build::root();
    let mut files = Vec::new();
    list(&root, &mut files)?;
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
        let name = file.strip_prefix(&root).unwrap_or(&file);
        found.extend(of_file(name, &text).into_iter().map(|problem| format!("{}:{problem}", name.display())));
    }
    Ok(found)
}

/// Rust and Markdown files below a folder.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !GENERATED.contains(&name.as_ref()) {
                list(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
            files.push(path);
        }
    }
    Ok(())
}

fn of_file(name: &Path, text: &str) -> Vec<String> {
    if name.extension().is_some_and(|extension| extension == "md") {
        return markdown(text);
    }
    let mut found = rust(text);
    if name.file_name().is_some_and(|name| name == "mod.rs") {
        found.push("1: a module `foo` is in foo.rs, not in foo/mod.rs".to_owned());
    }
    if name.ends_with("src/lib.rs") && !name.starts_with("tests") && !text.contains("#![warn(missing_docs)]")
    {
        found.push("1: a library warns of missing documentation: #![warn(missing_docs)]".to_owned());
    }
    found
}

fn rust(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line)) {
        let columns = line.chars().count();
        if columns > RUST_COLUMNS {
            found.push(format!("{number}: {columns} columns, {RUST_COLUMNS} at most"));
        }
        if line.trim_start().starts_with("#[path") {
            found.push(format!("{number}: a module's file follows from its name, without #[path]"));
        }
    }
    found
}

/// Tables, code and lines with a link may be wider: they cannot be broken everywhere.
fn markdown(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line)) {
        let start = line.trim_start();
        if start.starts_with("```") {
            in_code = !in_code;
            continue;
        }
        let columns = line.chars().count();
        let breakable = !in_code && !start.starts_with('|') && !line.contains("](") && !line.contains("://");
        if breakable && columns > PROSE_COLUMNS {
            found.push(format!("{number}: {columns} columns, {PROSE_COLUMNS} at most"));
        }
    }
    found
}

#[cfg(test)]
mod tests;
