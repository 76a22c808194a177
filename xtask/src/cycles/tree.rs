//! The modules of one crate, with what each defines, imports and names.
//!
//! Entry point: [`read`].

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::{Spacing, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree, Visibility};

/// A path as code writes it, one string per segment.
pub(super) type Segments = Vec<String>;

/// All modules of a crate; the first is its root.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) modules: Vec<Module>,
    /// Modules that define macros under `#[macro_export]`, which are named from the root.
    pub(super) exported_macros: BTreeMap<String, usize>,
}

/// One module: a file, or an inline module of a file.
#[derive(Debug)]
pub(super) struct Module {
    pub(super) file: PathBuf,
    pub(super) parent: Option<usize>,
    pub(super) children: BTreeMap<String, usize>,
    /// Names of the items defined here.
    pub(super) items: BTreeSet<String>,
    /// Imported names and the paths they stand for.
    pub(super) imports: BTreeMap<String, Vec<Segments>>,
    /// Modules whose every name is imported.
    pub(super) globs: Vec<Segments>,
    /// Every path that the module's code names.
    pub(super) mentions: Vec<Mention>,
}

/// A path, named once.
#[derive(Debug)]
pub(super) struct Mention {
    pub(super) path: Segments,
    pub(super) line: usize,
    pub(super) kind: Kind,
}

/// How a path is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// In code, or by a private `use`.
    Plain,
    /// By a `use` that others see.
    Reexport,
}

/// Reads the crate with this root file and every file its modules declare.
pub(super) fn read(root: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    let folder = root.parent().context("a file lies in a folder")?;
    read_file(&mut tree, root, folder, None)?;
    Ok(tree)
}

/// Reads one file as a module; `folder` is where the files of its children are.
fn read_file(tree: &mut Tree, file: &Path, folder: &Path, parent: Option<usize>) -> Result<usize> {
    let text = std::fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    let parsed = syn::parse_file(&text).with_context(|| format!("failed to parse {}", file.display()))?;
    read_items(tree, &parsed.items, file, folder, parent)
}

fn read_items(
    tree: &mut Tree,
    items: &[Item],
    file: &Path,
    folder: &Path,
    parent: Option<usize>,
) -> Result<usize> {
    let id = tree.modules.len();
    tree.modules.push(Module {
        file: file.to_path_buf(),
        parent,
        children: BTreeMap::new(),
        items: BTreeSet::new(),
        imports: BTreeMap::new(),
        globs: Vec::new(),
        mentions: Vec::new(),
    });
    for item in items.iter().filter(|item| !is_test(attributes(item))) {
        if let Item::Mod(module) = item {
            let name = plain(&module.ident);
            let child = match &module.content {
                Some((_, items)) => Some(read_items(tree, items, file, &folder.join(&name), Some(id))?),
                None => match module_file(folder, &name) {
                    Some((file, folder)) => Some(read_file(tree, &file, &folder, Some(id))?),
                    // Declared under a `cfg` of another machine, or with a path of its own.
                    None => None,
                },
            };
            if let Some(child) = child {
                tree.modules[id].children.insert(name, child);
            }
            continue;
        }
        if let Some(name) = defined(item) {
            if exports_macro(item) {
                tree.exported_macros.insert(name.clone(), id);
            }
            tree.modules[id].items.insert(name);
        }
        Reader { module: &mut tree.modules[id] }.visit_item(item);
    }
    Ok(id)
}

/// The file of a module declared in `folder`, and the folder of that module's own children.
fn module_file(folder: &Path, name: &str) -> Option<(PathBuf, PathBuf)> {
    let own = folder.join(name);
    [folder.join(format!("{name}.rs")), own.join("mod.rs")]
        .into_iter()
        .find(|file| file.is_file())
        .map(|file| (file, own))
}

/// Collects what the code of one module imports and names.
struct Reader<'a> {
    module: &'a mut Module,
}

impl Reader<'_> {
    fn mention(&mut self, path: Segments, line: usize, kind: Kind) {
        self.module.mentions.push(Mention { path, line, kind });
    }

    fn import(&mut self, tree: &UseTree, before: &[String], kind: Kind) {
        let with = |ident: &syn::Ident| -> Segments {
            let last = (ident != "self" || before.is_empty()).then(|| plain(ident));
            before.iter().cloned().chain(last).collect()
        };
        let (path, name, line) = match tree {
            UseTree::Path(it) => return self.import(&it.tree, &with(&it.ident), kind),
            UseTree::Group(it) => {
                return it.items.iter().for_each(|tree| self.import(tree, before, kind));
            }
            UseTree::Glob(it) => {
                self.module.globs.push(before.to_vec());
                let everything = before.iter().cloned().chain(["*".to_owned()]).collect();
                return self.mention(everything, it.star_token.span.start().line, kind);
            }
            UseTree::Name(it) => (with(&it.ident), None, it.ident.span().start().line),
            UseTree::Rename(it) => (with(&it.ident), Some(plain(&it.rename)), it.ident.span().start().line),
        };
        let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
        self.module.imports.entry(name).or_default().push(path.clone());
        self.mention(path, line, kind);
    }

    /// Paths among the tokens of a macro call, which have no syntax tree.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Segments = Vec::new();
        let mut line = 0;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    if punct.spacing() == Spacing::Alone && colons == 1 {
                        // A single colon: a type or a field's value follows.
                        self.end_of_path(&mut path, line);
                        colons = 0;
                    }
                    continue;
                }
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end_of_path(&mut path, line);
                    }
                    if path.is_empty() {
                        line = ident.span().start().line;
                        if colons == 2 {
                            // `::name` is of another crate.
                            path.push(String::new());
                        }
                    }
                    path.push(plain(&ident));
                }
                TokenTree::Group(group) => {
                    self.end_of_path(&mut path, line);
                    self.tokens(group.stream());
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => self.end_of_path(&mut path, line),
            }
            colons = 0;
        }
        self.end_of_path(&mut path, line);
    }

    fn end_of_path(&mut self, path: &mut Segments, line: usize) {
        let path = std::mem::take(path);
        // A single word of small letters is a variable or a field.
        let is_item = path.first().is_some_and(|it| it.starts_with(char::is_uppercase));
        if path.len() > 1 || is_item {
            self.mention(path, line, Kind::Plain);
        }
    }

    /// Paths in strings of attributes, as in `#[serde(with = "crate::hex")]`.
    fn attribute_strings(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.attribute_strings(group.stream()),
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    let path: Option<syn::Path> = syn::parse_str(text.trim_matches('"')).ok();
                    if let Some(path) = path {
                        let line = literal.span().start().line;
                        self.mention(segments(&path), line, Kind::Plain);
                    }
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        // A module inside a function is not read; an item for tests neither.
        if !is_test(attributes(item)) && !matches!(item, Item::Mod(_)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let kind = if matches!(item.vis, Visibility::Inherited) { Kind::Plain } else { Kind::Reexport };
        if item.leading_colon.is_none() {
            self.import(&item.tree, &[], kind);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none()
            && let Some(first) = path.segments.first()
        {
            self.mention(segments(path), first.ident.span().start().line, Kind::Plain);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if attribute.path().is_ident("doc") {
            return;
        }
        if let syn::Meta::List(list) = &attribute.meta {
            self.attribute_strings(list.tokens.clone());
            self.tokens(list.tokens.clone());
        }
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

fn segments(path: &syn::Path) -> Segments {
    path.segments.iter().map(|it| plain(&it.ident)).collect()
}

/// A name without the `r#` of raw identifiers.
fn plain(ident: &syn::Ident) -> String {
    let name = ident.to_string();
    name.strip_prefix("r#").map_or(name.clone(), str::to_owned)
}

/// The name of what an item defines.
fn defined(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(it) => &it.ident,
        Item::Enum(it) => &it.ident,
        Item::Fn(it) => &it.sig.ident,
        Item::Macro(it) => it.ident.as_ref()?,
        Item::Static(it) => &it.ident,
        Item::Struct(it) => &it.ident,
        Item::Trait(it) => &it.ident,
        Item::TraitAlias(it) => &it.ident,
        Item::Type(it) => &it.ident,
        Item::Union(it) => &it.ident,
        _ => return None,
    };
    Some(plain(ident))
}

fn exports_macro(item: &Item) -> bool {
    matches!(item, Item::Macro(it) if it.attrs.iter().any(|it| it.path().is_ident("macro_export")))
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(it) => &it.attrs,
        Item::Enum(it) => &it.attrs,
        Item::Fn(it) => &it.attrs,
        Item::Impl(it) => &it.attrs,
        Item::Macro(it) => &it.attrs,
        Item::Mod(it) => &it.attrs,
        Item::Static(it) => &it.attrs,
        Item::Struct(it) => &it.attrs,
        Item::Trait(it) => &it.attrs,
        Item::Type(it) => &it.attrs,
        Item::Use(it) => &it.attrs,
        _ => &[],
    }
}

/// Whether an item exists in tests alone: `#[cfg(test)]`, `#[cfg(all(test, …))]`.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        attribute.path().is_ident("cfg") && requires_test(list.tokens.clone())
    })
}

fn requires_test(tokens: TokenStream) -> bool {
    let mut word = String::new();
    for token in tokens {
        match token {
            TokenTree::Ident(ident) if ident == "test" => return true,
            TokenTree::Ident(ident) => word = ident.to_string(),
            TokenTree::Group(group) if word == "all" && requires_test(group.stream()) => return true,
            _ => {}
        }
    }
    false
}
