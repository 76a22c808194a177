use super::*;

fn bootstrap() -> Bootstrap {
    let key = rcgen::KeyPair::generate().expect("a key");
    let root = rcgen::CertificateParams::default().self_signed(&key).expect("a root").pem();
    Bootstrap {
        node: "node-a".to_owned(),
        controller: "[fd00::1]:15012".to_owned(),
        server_name: "ambit-controller".to_owned(),
        root,
        token: Token::new("s3cret.dG9rZW4="),
    }
}

#[test]
fn written_file_is_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node-a.yaml");
    let first = bootstrap();
    first.write(&path).expect("written");
    assert_eq!(Bootstrap::read(&path).expect("read"), first);
    let mode = fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777;
    assert_eq!(mode, 0o600);
    // Replaced whole, whatever mode the old one was given.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
    let second = Bootstrap { node: "node-b".to_owned(), ..bootstrap() };
    second.write(&path).expect("written");
    assert_eq!(Bootstrap::read(&path).expect("read"), second);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left beside it");
}

#[test]
fn file_readable_by_others_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("node-a.yaml");
    bootstrap().write(&path).expect("written");
    for mode in [0o640, 0o604, 0o660, 0o644] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        let error = Bootstrap::read(&path).expect_err("others may read it");
        assert!(matches!(error, Error::BootstrapMode { mode: found, .. } if found == mode), "{error}");
        assert!(error.to_string().contains("set it to 0600"), "{error}");
    }
}

#[test]
fn json_is_accepted() {
    let text = serde_json::to_string(&bootstrap()).expect("JSON");
    assert!(Bootstrap::parse(&text).is_ok());
}

#[test]
fn invalid_file_names_the_field() {
    let good = serde_json::to_value(bootstrap()).expect("JSON");
    for (name, field, value) in [
        ("no node", "node", serde_json::json!("")),
        ("no port", "controller", serde_json::json!("controller")),
        ("no host", "controller", serde_json::json!(":15012")),
        ("port 0", "controller", serde_json::json!("controller:0")),
        ("no server name", "server_name", serde_json::json!("")),
        ("no root", "root", serde_json::json!("hello")),
        ("no token", "token", serde_json::json!("")),
        ("token with a line feed", "token", serde_json::json!("a\nb")),
        ("wrong type", "node", serde_json::json!({ "a": 1 })),
    ] {
        let mut document = good.clone();
        document[field] = value;
        let (found, message) = Bootstrap::parse(&document.to_string()).expect_err(name);
        assert_eq!(found, field, "{name}: {message}");
    }
    let mut unknown = good.clone();
    unknown["colour"] = serde_json::json!("red");
    let (_, message) = Bootstrap::parse(&unknown.to_string()).expect_err("unknown field");
    assert!(message.contains("colour"), "{message}");
}

#[test]
fn token_is_not_printed() {
    assert!(!format!("{:?}", bootstrap()).contains("s3cret"));
}
