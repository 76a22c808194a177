use std::path::Path;

use super::of_crate;

/// The cycles of a crate with these files, `lib.rs` first.
fn cycles(files: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("a folder");
        std::fs::write(file, text).expect("a file");
    }
    of_crate(&folder.path().join("lib.rs"), folder.path()).expect("a crate that parses")
}

#[test]
fn a_cycle_is_reported_with_its_places() {
    let found = cycles(&[
        ("lib.rs", "mod a;\nmod b;\nmod c;\n"),
        ("a.rs", "use crate::b::B;\npub struct A(B);\n"),
        ("b.rs", "pub struct B;\nfn f() {\n    crate::c::g();\n}\n"),
        ("c.rs", "use super::a;\npub fn g() { a::A; }\n"),
    ]);
    let expected = "3 files need each other, for example a.rs -> b.rs -> c.rs -> a.rs\
        \n      a.rs:1 names b.rs (crate::b::B)\
        \n      b.rs:3 names c.rs (crate::c::g)\
        \n      c.rs:2 names a.rs (a::A)";
    assert_eq!(found, [expected]);
}

/// Files of a crate: name and text.
type Files = &'static [(&'static str, &'static str)];

#[test]
fn module_dependencies_are_recognized() {
    let rows: [(&str, usize, Files); 18] = [
        (
            "imports in one direction",
            0,
            &[("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b::B;"), ("b.rs", "pub struct B;")],
        ),
        (
            "a parent that calls its child, and the child uses the parent's item",
            1,
            &[
                ("lib.rs", "mod a; pub struct Shared; fn f() { a::g() }"),
                ("a.rs", "use super::Shared; pub fn g() {}"),
            ],
        ),
        (
            "a parent that only declares its child",
            0,
            &[("lib.rs", "mod a; pub struct Shared;"), ("a.rs", "use super::Shared; pub fn g() {}")],
        ),
        (
            "a parent that only re-exports its child",
            0,
            &[
                ("lib.rs", "mod a; pub struct Shared; pub use a::g; pub use crate::a::*;"),
                ("a.rs", "use super::Shared; pub fn g() {}"),
            ],
        ),
        (
            "a parent that re-exports its child and uses the name",
            1,
            &[
                ("lib.rs", "mod a; pub struct Shared; pub use a::G; fn f(_: G) {}"),
                ("a.rs", "use super::Shared; pub struct G;"),
            ],
        ),
        (
            "a re-export is followed to the file that defines the item",
            1,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "mod inner; pub use inner::Item;"),
                ("a/inner.rs", "use crate::b::f; pub struct Item;"),
                ("b.rs", "use crate::a::Item; pub fn f() {}"),
            ],
        ),
        (
            "naming a re-exported item is no dependency on the file that passes it on",
            0,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "mod inner; pub use inner::Item; use crate::b::f;"),
                ("a/inner.rs", "pub struct Item;"),
                ("b.rs", "use crate::a::Item; pub fn f() {}"),
            ],
        ),
        (
            "a re-export of a sibling's item",
            1,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "pub use crate::b::B; pub struct A;"),
                ("b.rs", "use crate::a::A; pub struct B;"),
            ],
        ),
        (
            "a file of the old layout",
            1,
            &[
                ("lib.rs", "mod a;"),
                ("a/mod.rs", "mod b; fn f() { b::g() } pub const N: u8 = 1;"),
                ("a/b.rs", "pub fn g() -> u8 { super::N }"),
            ],
        ),
        (
            "code for tests",
            0,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "use crate::b::B; pub struct A; #[cfg(test)] mod tests;"),
                ("a/tests.rs", "use super::A;"),
                ("b.rs", "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }"),
            ],
        ),
        (
            "code for tests among other conditions",
            0,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "use crate::b::B; pub struct A;"),
                ("b.rs", "pub struct B; #[cfg(all(test, unix))] use crate::a::A;"),
            ],
        ),
        (
            "code that is not for tests",
            1,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "use crate::b::B; pub struct A;"),
                ("b.rs", "pub struct B; #[cfg(not(test))] use crate::a::A;"),
            ],
        ),
        (
            "a path in a macro's arguments",
            1,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "pub fn f() { assert!(x == crate::b::g(1), \"{}\", y); }"),
                ("b.rs", "use crate::a::f; pub fn g() {}"),
            ],
        ),
        (
            "a path in an attribute",
            1,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "pub struct A { #[serde(with = \"crate::b\", default = \"crate::b::f\")] a: u8 }"),
                ("b.rs", "use crate::a::A; pub fn f() {}"),
            ],
        ),
        (
            "an import inside a function",
            1,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "pub fn f() { use crate::b; b::g(); }"),
                ("b.rs", "pub fn g() { crate::a::f(); }"),
            ],
        ),
        (
            "names through a glob",
            1,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "use crate::b::*; pub struct A;"),
                ("b.rs", "use crate::a::A; pub fn g() {}"),
            ],
        ),
        (
            "another crate's module of the same name",
            0,
            &[
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", "use ::b::B; use other::b::C; pub struct A;"),
                ("b.rs", "use crate::a::A; pub fn g() {}"),
            ],
        ),
        (
            "modules inside one file",
            0,
            &[("lib.rs", "mod a { pub fn f() { super::b::g() } } mod b { pub fn g() { super::a::f() } }")],
        ),
    ];
    for (name, expected, files) in rows {
        let found = cycles(files);
        assert_eq!(found.len(), expected, "{name}: {found:?}");
    }
}

#[test]
fn a_file_that_does_not_parse_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("lib.rs");
    std::fs::write(&file, "fn f( {").expect("a file");
    let error = of_crate(&file, Path::new("/")).expect_err("no Rust");
    assert!(error.to_string().contains("lib.rs"), "{error:#}");
}
