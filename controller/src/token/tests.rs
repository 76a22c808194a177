use super::*;

fn tokens() -> (tempfile::TempDir, Tokens) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::open(temporary.path()).unwrap();
    let tokens = Tokens::open(&folder).unwrap();
    (temporary, tokens)
}

#[test]
fn tokens_identify_nodes_and_survive_a_restart() {
    let (temporary, tokens) = tokens();
    let token = tokens.issue("node-1.rack.example").unwrap();
    assert_eq!(tokens.node(&token), Some("node-1.rack.example"));
    let again = Tokens::open(&Folder::open(temporary.path()).unwrap()).unwrap();
    assert_eq!(again.node(&token), Some("node-1.rack.example"));
    assert_eq!(again.issue("node-1.rack.example").unwrap(), token);
}

#[test]
fn invalid_tokens_are_refused() {
    let (_temporary, tokens) = tokens();
    let (_other_folder, other) = self::tokens();
    let token = tokens.issue("a").unwrap();
    let code = token.strip_prefix("v1.a.").unwrap();
    let flipped = if code.starts_with('0') { "1" } else { "0" };
    let rows = [
        ("empty", String::new()),
        ("another node's name", format!("v1.b.{code}")),
        ("another version", format!("v2.a.{code}")),
        ("one digit changed", format!("v1.a.{flipped}{}", &code[1..])),
        ("cut short", format!("v1.a.{}", &code[..62])),
        ("longer", format!("v1.a.{code}00")),
        ("not hexadecimal", format!("v1.a.{}", "g".repeat(64))),
        ("not ASCII", format!("v1.a.{}", "é".repeat(32))),
        ("another controller's", other.issue("a").unwrap()),
        ("no node", format!("v1..{code}")),
        ("no code", "v1.a.".to_owned()),
    ];
    for (name, wrong) in rows {
        assert_eq!(tokens.node(&wrong), None, "{name}");
    }
}

#[test]
fn node_names_are_dns_names() {
    let (_temporary, tokens) = tokens();
    for (name, good) in [
        ("a", true),
        ("n-1.x", true),
        ("", false),
        ("A", false),
        ("a b", false),
        ("a..b", false),
        ("-a", false),
    ] {
        assert_eq!(tokens.issue(name).is_ok(), good, "{name:?}");
    }
}

#[test]
fn a_damaged_key_is_an_error_and_is_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = Folder::open(temporary.path()).unwrap();
    folder.write_secret(FILE, "abc").unwrap();
    assert!(matches!(Tokens::open(&folder), Err(Error::Damaged)));
    assert_eq!(folder.read_secret(FILE).unwrap().as_deref(), Some("abc"));
}
