//! What documents point at exists: relative links, headings, and decisions cited anywhere in the repository;
//! and each decision has its status, its date and its line in the index.
//!
//! Entry point: [`problems`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

use crate::build;

const DECISIONS: &str = "docs/decisions";
/// Folders that are generated or not ours.
const SKIPPED: [&str; 3] = ["target", ".git", "corpus"];
/// Kinds of text files in which decisions may be cited.
const TEXT: [&str; 7] = ["md", "rs", "toml", "yaml", "yml", "tpl", "proto"];

/// Every problem in the repository, one line each.
pub(crate) fn problems() -> Result<Vec<String>> {
    let root = build::root();
    let mut files = Files::new();
    read(&root, &root, &mut files)?;
    Ok(of_files(&files, &|path| root.join(path).exists()))
}

/// Texts by their paths in the repository.
type Files = BTreeMap<PathBuf, String>;

fn read(folder: &Path, root: &Path, files: &mut Files) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !SKIPPED.contains(&name.as_ref()) {
                read(&path, root, files)?;
            }
        } else if path.extension().is_some_and(|it| TEXT.iter().any(|text| it == *text)) {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("failed to read {}", path.display()))?;
            files.insert(path.strip_prefix(root).unwrap_or(&path).to_owned(), text);
        }
    }
    Ok(())
}

fn of_files(files: &Files, exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let decisions: BTreeMap<&str, &Path> =
        files.keys().filter_map(|path| Some((number(path)?, path.as_path()))).collect();
    let mut found = Vec::new();
    for (path, text) in files {
        let is_markdown = path.extension().is_some_and(|extension| extension == "md");
        let mut problems = Vec::new();
        for (line, content) in (1..).zip(text.lines()) {
            let unknown = citations(content).into_iter().filter(|cited| !decisions.contains_key(cited));
            problems.extend(unknown.map(|cited| (line, format!("there is no decision {cited}"))));
        }
        if is_markdown {
            problems.extend(links(path, text, files, exists));
        }
        if number(path).is_some() && !has_status(text) {
            let wanted = "a decision's third line is `Status: accepted · Date: 2026-01-31`";
            problems.push((3, wanted.to_owned()));
        }
        found.extend(problems.into_iter().map(|(line, what)| format!("{}:{line}: {what}", path.display())));
    }
    let index = files.get(&Path::new(DECISIONS).join("README.md")).map_or("", String::as_str);
    for path in decisions.values() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !index.contains(name.as_ref()) {
            found.push(format!("{}:1: not in the index, {DECISIONS}/README.md", path.display()));
        }
    }
    found
}

/// The number of the decision that a file holds.
fn number(path: &Path) -> Option<&str> {
    let name = path.strip_prefix(DECISIONS).ok()?.to_str()?.strip_suffix(".md")?;
    let (number, _) = name.split_once('-')?;
    (number.len() == 3 && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(number)
}

fn has_status(text: &str) -> bool {
    let mut fields = text.lines().nth(2).unwrap_or_default().split(" · ");
    let status = fields.next().and_then(|field| field.strip_prefix("Status: "));
    let date = fields.next().and_then(|field| field.strip_prefix("Date: ")).unwrap_or_default();
    let shape = |byte: u8| if byte.is_ascii_digit() { b'9' } else { byte };
    status.is_some_and(|status| !status.is_empty()) && date.bytes().map(shape).eq(*b"9999-99-99")
}

/// The numbers in `decision 010`, `decisions 010` and `decisions/010`.
fn citations(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let words = ["decision ", "Decision ", "decisions ", "Decisions ", "decisions/"];
    for (place, _) in line.match_indices("ecision").filter(|(place, _)| *place > 0) {
        let start = &line[place - 1..];
        let Some(after) = words.iter().find_map(|word| start.strip_prefix(word)) else { continue };
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 3 {
            found.push(&after[..3]);
        }
    }
    found
}

/// Relative links that lead nowhere.
fn links(path: &Path, text: &str, files: &Files, exists: &dyn Fn(&Path) -> bool) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for target in targets(line).into_iter().filter(|target| !target.contains("://")) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.to_owned(),
                file => normal(&path.parent().unwrap_or(Path::new("")).join(file)),
            };
            if !exists(&file) {
                found.push((number, format!("{target}: there is no such file")));
            } else if let Some(text) = files.get(&file)
                && !heading.is_empty()
                && !headings(text).contains(heading)
            {
                found.push((number, format!("{target}: there is no such heading")));
            }
        }
    }
    found
}

/// What the links of a line point at.
fn targets(line: &str) -> Vec<&str> {
    let starts = line.match_indices("](").map(|(place, mark)| &line[place + mark.len()..]);
    starts.filter_map(|rest| rest.split(')').next()).filter(|it| !it.contains(' ')).collect()
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// The anchors that GitHub gives to headings.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
    let anchor = |title: &str| {
        let kept = title.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
    };
    titles.map(anchor).collect()
}

#[cfg(test)]
mod tests;
