use super::*;

#[test]
fn files_are_reread_on_each_use() {
    let folder = tempfile::tempdir().unwrap();
    let (root_file, token_file) = (folder.path().join("root.pem"), folder.path().join("token"));
    let settings = Settings {
        address: "controller:15012".to_owned(),
        server_name: "controller".to_owned(),
        root_file: root_file.clone(),
        token_file: token_file.clone(),
    };
    settings.check().unwrap();
    let controller = Controller::from(settings);
    assert!(matches!(controller.token(), Err(Error::ReadToken { .. })));
    assert!(matches!(controller.roots(), Err(Error::ReadRoots { .. })));
    for (token, roots) in [("first", "one"), ("second", "two")] {
        fs::write(&token_file, format!("{token}\n")).unwrap();
        fs::write(&root_file, roots).unwrap();
        assert_eq!(controller.token().unwrap().reveal(), token);
        assert_eq!(controller.roots().unwrap(), roots);
    }
    for bad in ["", "\n", "two words", "two\nlines"] {
        fs::write(&token_file, bad).unwrap();
        assert!(matches!(controller.token(), Err(Error::TokenForm { .. })), "{bad:?}");
    }
}

#[test]
fn invalid_settings_name_their_field() {
    let settings = |address: &str, server_name: &str| Settings {
        address: address.to_owned(),
        server_name: server_name.to_owned(),
        root_file: PathBuf::new(),
        token_file: PathBuf::new(),
    };
    for (name, settings, field) in [
        ("no port", settings("host", "n"), "address"),
        ("no host", settings(":1", "n"), "address"),
        ("port 0", settings("host:0", "n"), "address"),
        ("no name", settings("host:1", ""), "server_name"),
    ] {
        assert_eq!(settings.check().map_err(|(field, _)| field), Err(field.to_owned()), "{name}");
    }
}
