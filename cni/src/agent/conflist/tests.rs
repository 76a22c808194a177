use super::*;

fn entry(server: &str) -> Entry {
    Entry {
        kind: PLUGIN.to_owned(),
        kubeconfig: "/etc/cni/net.d/ambit-cni.kubeconfig".into(),
        socket: format!("/run/{server}/enrol.sock").into(),
        cluster: "Kubernetes".to_owned(),
        excluded_namespaces: vec!["ambit-system".to_owned()],
        log_file: None,
        wraps_conf: false,
    }
}

const PRETTY: &str = r#"{
  "cniVersion": "1.0.0", "name": "lab",
  "plugins": [
    { "type": "bridge", "note": "}],\"" },
    {
      "type":   "portmap"
    }
  ]
}
"#;
const COMPACT: &str = r#"{"name":"k8s","plugins":[{"type":"ptp"}],"disableCheck":true}"#;
const TABS: &str = "{\n\t\"plugins\": [\n\t\t{\"type\": \"calico\"}\n\t]\n}";
const SINGLE: &str = "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"old\",\n  \"type\": \"flannel\"\n}\n";

fn plugins(text: &str) -> Vec<String> {
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    let plugins = value["plugins"].as_array().unwrap();
    plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_entry_is_appended_and_removed_exactly() {
    let rows: [(&str, &str, &[&str]); 3] = [
        ("indented", PRETTY, &["bridge", "portmap", PLUGIN]),
        ("on one line", COMPACT, &["ptp", PLUGIN]),
        ("tabs", TABS, &["calico", PLUGIN]),
    ];
    for (name, text, expected) in rows {
        let with = with_entry(text, &entry("a")).unwrap().unwrap();
        assert_eq!(plugins(&with), expected, "{name}: {with}");
        assert_eq!(with_entry(&with, &entry("a")).unwrap(), None, "{name}: again");
        assert_eq!(without_entry(&with).unwrap(), Without::List(text.to_owned()), "{name}");
    }
}

#[test]
fn the_rest_keeps_its_formatting() {
    let with = with_entry(PRETTY, &entry("a")).unwrap().unwrap();
    let (before, after) = PRETTY.split_at(PRETTY.find("\n  ]\n}").unwrap());
    assert!(with.starts_with(before) && with.ends_with(after), "{with}");
    assert!(with.contains("\n    {\n      \"type\": \"ambit-cni\",\n"), "{with}");
    let compact = with_entry(COMPACT, &entry("a")).unwrap().unwrap();
    assert!(!compact.contains('\n'), "{compact}");
}

#[test]
fn an_old_entry_is_replaced_where_it_stands() {
    let old = with_entry(PRETTY, &entry("old")).unwrap().unwrap();
    let old = old.replace("\n  ]\n}", ",\n    {\"type\": \"later\"}\n  ]\n}");
    let new = with_entry(&old, &entry("new")).unwrap().unwrap();
    assert_eq!(plugins(&new), ["bridge", "portmap", PLUGIN, "later"]);
    assert_eq!(new, old.replace("/run/old/", "/run/new/"));
    // One of another version of ours, with fields that this one does not know.
    let foreign = r#"{"plugins":[{"type":"x"},{"type":"ambit-cni","mode":7}]}"#;
    let mended = with_entry(foreign, &entry("a")).unwrap().unwrap();
    assert_eq!(with_entry(&mended, &entry("a")).unwrap(), None, "{mended}");
}

#[test]
fn duplicate_entries_are_reduced_to_one() {
    let twice = r#"{"plugins":[{"type":"ambit-cni"},{"type":"x"},{"type":"ambit-cni"},{"type":"y"}]}"#;
    let once = with_entry(twice, &entry("a")).unwrap().unwrap();
    assert_eq!(plugins(&once), ["x", "y", PLUGIN]);
    assert_eq!(
        without_entry(&once).unwrap(),
        Without::List(r#"{"plugins":[{"type":"x"},{"type":"y"}]}"#.to_owned())
    );
}

#[test]
fn a_single_plugin_is_wrapped_and_unwrapped() {
    let list = with_entry(SINGLE, &entry("a")).unwrap().unwrap();
    assert_eq!(plugins(&list), ["flannel", PLUGIN]);
    let value: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&value["cniVersion"], &value["name"]), (&"0.3.1".into(), &"old".into()));
    assert_eq!(with_entry(&list, &entry("a")).unwrap(), None, "again");
    let changed = with_entry(&list, &entry("b")).unwrap().unwrap();
    assert_eq!(without_entry(&changed).unwrap(), Without::Single(SINGLE.to_owned()), "also after an upgrade");
    // Another tool has added a plugin to our list: it stays a list.
    let added = list.replace("\n  ]", ",\n    {\"type\": \"later\"}\n  ]");
    assert!(matches!(without_entry(&added).unwrap(), Without::List(rest) if plugins(&rest) == ["flannel",
            "later"]));
}

#[test]
fn a_configuration_without_the_entry_is_unchanged() {
    for text in [PRETTY, COMPACT, SINGLE] {
        assert_eq!(without_entry(text).unwrap(), Without::Same);
    }
    assert_eq!(without_entry(r#"{"plugins":[{"type":"ambit-cni"}]}"#).unwrap(), Without::Nothing);
}

#[test]
fn other_content_is_an_error() {
    let rows = [
        ("no JSON", "# nothing", "not JSON"),
        ("a list without plugins", r#"{"plugins":[]}"#, "no plugins"),
        ("neither", r#"{"name":"x"}"#, "neither"),
        ("an empty type", r#"{"type":""}"#, "neither"),
        ("a list of something else", r#"{"plugins":{}}"#, "not JSON"),
    ];
    for (name, text, expected) in rows {
        let error = with_entry(text, &entry("a")).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}
