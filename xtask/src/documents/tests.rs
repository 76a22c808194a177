use super::{Files, of_files};

const INDEX: &str = "| [010](010-sockets.md) | Sockets |\n";
const DECISION: &str =
    "# 010: Sockets\n\nStatus: accepted · Date: 2026-11-21 · Includes: 011\n\n**Context.** …\n";

/// The problems of a repository with a decision, its index and another file.
fn problems(path: &str, text: &str) -> Vec<String> {
    let mut files = Files::new();
    files.insert("docs/decisions/README.md".into(), INDEX.to_owned());
    files.insert("docs/decisions/010-sockets.md".into(), DECISION.to_owned());
    files.insert(path.into(), text.to_owned());
    of_files(&files, &|path| files.contains_key(path))
}

#[test]
fn dead_references_are_reported() {
    let rows = [
        ("a decision that is cited", "core/src/lib.rs", "// See docs/decisions/010.\n", 0),
        ("a decision that does not exist", "core/src/lib.rs", "// See decision NNN, and decision 010.\n", 1),
        ("two that do not exist", "Cargo.toml", "# decisions/NNN Decisions NNN\n", 2),
        ("another number", "README.md", "The decision of 2026, decision 10, decisions 0100\n", 0),
        ("a link to a file", "docs/guide/a.md", "[why](../decisions/010-sockets.md)\n", 0),
        ("a link to a file that does not exist", "docs/guide/a.md", "[why](../decisions/why.md)\n", 1),
        ("a link to a heading", "a.md", "# One `two`, three\n\n[there](#one-two-three)\n", 0),
        ("a link to a heading that does not exist", "a.md", "# One\n\n[there](#two)\n", 1),
        (
            "a link to a heading of another file",
            "docs/a.md",
            "[x](decisions/010-sockets.md#010-sockets)\n",
            0,
        ),
        ("a link to the web", "a.md", "[there](https://example.org/a)\n", 0),
        ("a link in code", "a.md", "```\n[there](nowhere)\n```\n", 0),
        ("a decision without a status", "docs/decisions/010-sockets.md", "# 010\n\n**Context.** …\n", 1),
        ("a decision without a date", "docs/decisions/010-sockets.md", "# 010\n\nStatus: accepted\n", 1),
        ("a decision that is not in the index", "docs/decisions/020-more.md", DECISION, 1),
    ];
    for (name, path, text, expected) in rows {
        // Written so that the lint does not read them here.
        let found = problems(path, &text.replace("NNN", "999"));
        assert_eq!(found.len(), expected, "{name}: {found:?}");
    }
}
