//! Groups of files of which each needs every other, and how they are reported.
//!
//! Entry point: [`cycles`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::names::Dependencies;

/// One report per group: its shortest cycle, and every dependency within the group.
pub(super) fn cycles(dependencies: &Dependencies, base: &Path) -> Vec<String> {
    groups(dependencies).iter().map(|group| report(group, dependencies, base)).collect()
}

/// The groups of two or more files that reach each other.
fn groups(dependencies: &Dependencies) -> Vec<BTreeSet<&PathBuf>> {
    let reach: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> =
        dependencies.keys().map(|file| (file, reachable(file, dependencies))).collect();
    let mut found: Vec<BTreeSet<&PathBuf>> = Vec::new();
    for (file, reached) in &reach {
        if !reached.contains(file) || found.iter().any(|group| group.contains(file)) {
            continue;
        }
        found.push(reached.iter().filter(|other| reach[*other].contains(file)).copied().collect());
    }
    found
}

/// Every file that a file needs, directly or through others.
fn reachable<'a>(from: &PathBuf, dependencies: &'a Dependencies) -> BTreeSet<&'a PathBuf> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&PathBuf> = dependencies[from].keys().collect();
    while let Some(file) = next.pop() {
        if reached.insert(file) {
            next.extend(dependencies[file].keys());
        }
    }
    reached
}

fn report(group: &BTreeSet<&PathBuf>, dependencies: &Dependencies, base: &Path) -> String {
    let name = |file: &Path| file.strip_prefix(base).unwrap_or(file).display().to_string();
    let shortest = group
        .iter()
        .filter_map(|file| shortest_cycle(file, dependencies))
        .min_by_key(Vec::len)
        .unwrap_or_default();
    let path: Vec<String> = shortest.iter().map(|file| name(file)).collect();
    let mut text = format!("{} files need each other, for example {}", group.len(), path.join(" -> "));
    for file in group {
        for (other, place) in dependencies[*file].iter().filter(|(other, _)| group.contains(other)) {
            let line = place.line;
            let _ = write!(text, "\n      {}:{line} names {} ({})", name(file), name(other), place.path);
        }
    }
    text
}

/// The shortest way from a file back to itself.
fn shortest_cycle<'a>(start: &'a PathBuf, dependencies: &'a Dependencies) -> Option<Vec<&'a PathBuf>> {
    let mut before: BTreeMap<&PathBuf, &PathBuf> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for other in dependencies[file].keys() {
            if other == start {
                let mut path = vec![start, file];
                while path.last() != Some(&start) {
                    path.push(before[path[path.len() - 1]]);
                }
                path.reverse();
                return Some(path);
            }
            if !before.contains_key(other) {
                before.insert(other, file);
                queue.push_back(other);
            }
        }
    }
    None
}
