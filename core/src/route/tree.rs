//! Prefixes of paths as a tree of their elements: [`Tree`].

use std::collections::HashMap;

/// The root, which `/` stands for.
const ROOT: usize = 0;

/// What is known for each prefix. A path's prefixes are found in one walk along its elements.
#[derive(Debug)]
pub(super) struct Tree<T> {
    nodes: Vec<Node<T>>,
}

#[derive(Debug)]
struct Node<T> {
    parent: Option<usize>,
    children: HashMap<Box<str>, usize>,
    values: Vec<T>,
}

impl<T> Node<T> {
    fn below(parent: Option<usize>) -> Self {
        Self { parent, children: HashMap::new(), values: Vec::new() }
    }
}

impl<T> Tree<T> {
    pub(super) fn new() -> Self {
        Self { nodes: vec![Node::below(None)] }
    }

    /// Adds a value behind those that the prefix has.
    pub(super) fn insert(&mut self, prefix: &str, value: T) {
        let mut at = ROOT;
        for element in elements(prefix.strip_suffix('/').unwrap_or(prefix)) {
            if let Some(child) = self.nodes[at].children.get(element) {
                at = *child;
                continue;
            }
            let child = self.nodes.len();
            self.nodes.push(Node::below(Some(at)));
            self.nodes[at].children.insert(element.into(), child);
            at = child;
        }
        self.nodes[at].values.push(value);
    }

    /// The values of every prefix of a path, those of the longest first.
    pub(super) fn prefixes_of<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a T> {
        let mut deepest = ROOT;
        for element in elements(path) {
            let Some(child) = self.nodes[deepest].children.get(element) else { break };
            deepest = *child;
        }
        std::iter::successors(Some(deepest), |at| self.nodes[*at].parent)
            .flat_map(|at| &self.nodes[at].values)
    }
}

/// What stands between the slashes of a path: `/a/b` has `a` and `b`, `/a/` has `a` and an empty one.
fn elements(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').skip(1)
}
