//! What a path means: the module that defines the item it names, through imports and re-exports.
//!
//! Entry point: [`dependencies`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::tree::{Kind, Mention, Tree};

/// From one file to another: the first place where a name of the other stands.
pub(super) type Dependencies = BTreeMap<PathBuf, BTreeMap<PathBuf, Place>>;

/// Where a name stands, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) path: String,
}

/// What a path means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Module(usize),
    /// An item, by the module that defines it.
    Item(usize),
}

/// The files that each file of the crate needs.
pub(super) fn dependencies(tree: &Tree) -> Dependencies {
    let mut found = Dependencies::new();
    for (id, module) in tree.modules.iter().enumerate() {
        found.entry(module.file.clone()).or_default();
        for mention in &module.mentions {
            let Some(defining) = defining(tree, id, mention) else { continue };
            let file = &tree.modules[defining].file;
            let reexport = mention.kind == Kind::Reexport && is_within(tree, defining, id);
            if *file != module.file && !reexport {
                let place = Place { line: mention.line, path: mention.path.join("::") };
                found.entry(module.file.clone()).or_default().entry(file.clone()).or_insert(place);
            }
        }
    }
    found
}

/// The module that defines what is mentioned; none where it is of another crate.
fn defining(tree: &Tree, from: usize, mention: &Mention) -> Option<usize> {
    let mut names = Names { tree, seen: BTreeSet::new() };
    match mention.path.split_last() {
        Some((last, before)) if last == "*" => match names.meaning(from, before)? {
            Meaning::Module(module) if tree.modules[module].items.is_empty() => None,
            Meaning::Module(module) | Meaning::Item(module) => Some(module),
        },
        _ => match names.meaning(from, &mention.path)? {
            // A module by itself is nothing to depend on; the items named through it are.
            Meaning::Module(_) => None,
            Meaning::Item(module) => Some(module),
        },
    }
}

fn is_within(tree: &Tree, module: usize, ancestor: usize) -> bool {
    let parents = std::iter::successors(Some(module), |it| tree.modules[*it].parent);
    parents.into_iter().any(|it| it == ancestor)
}

struct Names<'a> {
    tree: &'a Tree,
    /// What is being looked for, so that imports in a circle end.
    seen: BTreeSet<(usize, String)>,
}

impl Names<'_> {
    fn meaning(&mut self, from: usize, path: &[String]) -> Option<Meaning> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Meaning::Module(0),
            "self" => Meaning::Module(from),
            "super" => Meaning::Module(self.tree.modules[from].parent?),
            name => self.in_module(from, name, rest.is_empty())?,
        };
        while let (Meaning::Module(module), Some((name, after))) = (at, rest.split_first()) {
            at = match name.as_str() {
                "super" => Meaning::Module(self.tree.modules[module].parent?),
                // What is not found there, a macro has made there.
                name => self.in_module(module, name, after.is_empty()).unwrap_or(Meaning::Item(module)),
            };
            rest = after;
        }
        Some(at)
    }

    /// What a name means in a module; the last segment of a path is an item rather than a module of its name.
    fn in_module(&mut self, module: usize, name: &str, last: bool) -> Option<Meaning> {
        let tree = self.tree;
        let here = &tree.modules[module];
        let item = here.items.contains(name).then_some(Meaning::Item(module));
        let child = here.children.get(name).map(|child| Meaning::Module(*child));
        let own = if last { item.or(child) } else { child.or(item) };
        if own.is_some() {
            return own;
        }
        if module == 0
            && last
            && let Some(defining) = tree.exported_macros.get(name)
        {
            return Some(Meaning::Item(*defining));
        }
        if !self.seen.insert((module, name.to_owned())) {
            return None;
        }
        let mut found = None;
        for path in here.imports.get(name).into_iter().flatten() {
            found = found.or_else(|| self.meaning(module, path));
        }
        for path in &here.globs {
            if found.is_some() {
                break;
            }
            if let Some(Meaning::Module(other)) = self.meaning(module, path) {
                found = self.in_module(other, name, last);
            }
        }
        self.seen.remove(&(module, name.to_owned()));
        found
    }
}
