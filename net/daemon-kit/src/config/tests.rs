use std::path::Path;

use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    port: u16,
    #[expect(dead_code, reason = "only its name counts")]
    log: Option<Log>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Log {
    #[expect(dead_code, reason = "only its name counts")]
    filter: String,
}

#[test]
fn errors_name_file_and_field() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("daemon.yaml");
    let check = |written: Written| {
        if written.port == 0 { Err(("port".to_owned(), "is 0".to_owned())) } else { Ok(()) }
    };
    let rows = [
        ("good", "port: 1", None),
        ("not YAML", "port: 1: 2", Some("mapping values")),
        ("missing", "{}", Some(": missing field `port`")),
        ("unknown", "port: 1\nprt: 2", Some(": prt: unknown field")),
        ("nested", "port: 1\nlog: {colour: red}", Some(": log.colour: unknown field")),
        ("wrong type", "port: many", Some(": port: invalid type")),
        ("what is checked afterwards", "port: 0", Some(": port: is 0")),
    ];
    for (name, text, expected) in rows {
        std::fs::write(&path, text).expect("written");
        let said = read(&path, check).err().map(|error| error.to_string());
        let fits = match (&said, expected) {
            (None, None) => true,
            (Some(said), Some(expected)) => {
                said.starts_with(&path.display().to_string()) && said.contains(expected)
            }
            _ => false,
        };
        assert!(fits, "{name}: {said:?}");
    }
    let error = read(Path::new("/no/such.yaml"), check).expect_err("no file").chain();
    assert!(error.starts_with("failed to read configuration /no/such.yaml: "), "{error}");
}
