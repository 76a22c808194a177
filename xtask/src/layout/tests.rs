use std::path::Path;

use super::of_file;

#[test]
fn layout_problems_are_found() {
    let wide = "x".repeat(111);
    let prose = format!("{} end", "word ".repeat(24));
    let rows = [
        ("code that fits", "a.rs", "fn f() {}\n".to_owned(), 0),
        ("a comment that is too wide", "a.rs", format!("// {wide}\n"), 1),
        ("columns are characters, not bytes", "a.rs", format!("{}\n", "é".repeat(110)), 0),
        ("a module file of the old layout", "src/a/mod.rs", String::new(), 1),
        ("a module with a path", "a.rs", "#[path = \"b.rs\"]\nmod tests;\n".to_owned(), 1),
        ("a library that may leave out documentation", "core/src/lib.rs", "//! A.\n".to_owned(), 1),
        ("a library that may not", "core/src/lib.rs", "//! A.\n#![warn(missing_docs)]\n".to_owned(), 0),
        ("a library for tests", "tests/harness/src/lib.rs", "//! A.\n".to_owned(), 0),
        ("prose that is too wide", "a.md", prose.clone(), 1),
        ("prose with a link", "a.md", format!("[a](b) {prose}"), 0),
        ("a table", "a.md", format!("| {prose} |"), 0),
        ("code in Markdown", "a.md", format!("```\n{prose}\n```\n"), 0),
        ("prose after code", "a.md", format!("```\n```\n{prose}\n"), 1),
    ];
    for (name, file, text, expected) in rows {
        let found = of_file(Path::new(file), &text);
        assert_eq!(found.len(), expected, "{name}: {found:?}");
    }
}
