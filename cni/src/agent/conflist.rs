//! A CNI configuration with our entry in it, or without: text to text. Only our entry's characters change;
//! what others wrote, and how, stays.
//!
//! Ways in: [`with_entry`] and [`without_entry`].

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::entry::{Entry, PLUGIN};

/// What a file of the configuration folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A list of plugins.
    List,
    /// A single plugin.
    Single,
}

/// Why a file is not taken for a configuration. Runtimes pass over such files too.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConflistError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("neither a list of plugins nor a plugin")]
    Neither,
    #[error("the list has no plugins")]
    Empty,
}

/// A file's text once our entry is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Without {
    /// There was none.
    Same,
    List(String),
    /// The list was ours; this is the single plugin it was made around.
    Single(String),
    /// Nothing but our entry was in it.
    Nothing,
}

#[derive(Deserialize)]
struct Outer<'a> {
    #[serde(borrow, rename = "cniVersion")]
    version: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    plugins: Option<Vec<&'a RawValue>>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl<'a> Outer<'a> {
    fn parse(text: &'a str) -> Result<Self, ConflistError> {
        serde_json::from_str(text).map_err(|error| ConflistError::Json(error.to_string()))
    }
}

/// What form a configuration has.
pub(crate) fn form(text: &str) -> Result<Form, ConflistError> {
    let outer = Outer::parse(text)?;
    match (outer.plugins, outer.kind) {
        (Some(plugins), _) if plugins.is_empty() => Err(ConflistError::Empty),
        (Some(_), _) => Ok(Form::List),
        (None, Some(kind)) if !kind.is_empty() => Ok(Form::Single),
        (None, _) => Err(ConflistError::Neither),
    }
}

/// The configuration as a list with our entry: at its end, or where it stands already. `None`: it is there as
/// it should.
pub(crate) fn with_entry(text: &str, entry: &Entry) -> Result<Option<String>, ConflistError> {
    match form(text)? {
        Form::Single => wrap(text, entry).map(Some),
        Form::List => {
            let outer = Outer::parse(text)?;
            let plugins = outer.plugins.unwrap_or_default();
            let ours: Vec<usize> = (0..plugins.len()).filter(|at| is_ours(plugins[*at])).collect();
            match ours[..] {
                [] => Ok(Some(append(text, &plugins, entry))),
                [at] => Ok(replace(text, plugins[at], entry)),
                [first, ..] => {
                    // Somebody merged two files. One is enough.
                    let kept = wraps(plugins[first]);
                    match without_entry(text)? {
                        Without::List(rest) => {
                            let entry = Entry { wraps_conf: kept, ..entry.clone() };
                            let outer = Outer::parse(&rest)?;
                            Ok(Some(append(&rest, &outer.plugins.unwrap_or_default(), &entry)))
                        }
                        _ => Err(ConflistError::Empty),
                    }
                }
            }
        }
    }
}

/// The configuration without our entry, in the form it had before.
pub(crate) fn without_entry(text: &str) -> Result<Without, ConflistError> {
    let outer = Outer::parse(text)?;
    let plugins = outer.plugins.unwrap_or_default();
    let others: Vec<&RawValue> = plugins.iter().copied().filter(|plugin| !is_ours(plugin)).collect();
    if others.len() == plugins.len() {
        return Ok(Without::Same);
    }
    if let [single] = others[..]
        && plugins.iter().any(|plugin| is_ours(plugin) && wraps(plugin))
    {
        return Ok(Without::Single(format!("{}\n", single.get())));
    }
    if others.is_empty() {
        return Ok(Without::Nothing);
    }
    let mut rest = text.to_owned();
    // From the back, so that places before stay what they are.
    for (index, plugin) in plugins.iter().enumerate().rev().filter(|(_, plugin)| is_ours(plugin)) {
        let own = span(text, plugin);
        let range = match index.checked_sub(1).map(|before| span(text, plugins[before])) {
            Some(before) => before.end..own.end,
            // The first: up to the next one, which takes its place.
            None => own.start..span(text, plugins[1]).start,
        };
        rest.replace_range(range, "");
    }
    Ok(Without::List(rest))
}

fn append(text: &str, plugins: &[&RawValue], entry: &Entry) -> String {
    let spans: Vec<Range<usize>> = plugins.iter().map(|plugin| span(text, plugin)).collect();
    let Some(last) = spans.last() else { return text.to_owned() };
    // As the last one stands: on a line of its own, so far from the margin, or right behind the one before.
    let between = text[..last.start].rsplit(['[', ',']).next().unwrap_or_default();
    let mut result = text[..last.end].to_owned();
    result.push(',');
    result.push_str(between);
    result.push_str(&written(entry, between));
    result.push_str(&text[last.end..]);
    result
}

fn replace(text: &str, old: &RawValue, entry: &Entry) -> Option<String> {
    let entry = Entry { wraps_conf: wraps(old), ..entry.clone() };
    if serde_json::from_str::<Entry>(old.get()).is_ok_and(|old| old == entry) {
        return None;
    }
    let span = span(text, old);
    let before = text[..span.start].rsplit(['[', ',']).next().unwrap_or_default();
    Some(format!("{}{}{}", &text[..span.start], written(&entry, before), &text[span.end..]))
}

/// A list around a single plugin, whose text is kept as it is.
fn wrap(text: &str, entry: &Entry) -> Result<String, ConflistError> {
    let outer = Outer::parse(text)?;
    let entry = Entry { wraps_conf: true, ..entry.clone() };
    let mut head = String::new();
    for (field, value) in [("cniVersion", outer.version), ("name", outer.name)] {
        if let Some(value) = value {
            head = format!("{head}  \"{field}\": {},\n", value.get());
        }
    }
    let between = "\n    ";
    let entry = written(&entry, between);
    Ok(format!("{{\n{head}  \"plugins\": [{between}{},{between}{entry}\n  ]\n}}\n", text.trim()))
}

/// Our entry, indented like what stands before it; on one line where that does.
fn written(entry: &Entry, before: &str) -> String {
    let Some((_, indentation)) = before.rsplit_once('\n') else {
        return serde_json::to_string(entry).unwrap_or_default();
    };
    let text = serde_json::to_string_pretty(entry).unwrap_or_default();
    text.replace('\n', &format!("\n{indentation}"))
}

fn is_ours(plugin: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Typed {
        #[serde(rename = "type")]
        kind: String,
    }
    serde_json::from_str::<Typed>(plugin.get()).is_ok_and(|plugin| plugin.kind == PLUGIN)
}

fn wraps(plugin: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Wrapping {
        #[serde(default)]
        wraps_conf: bool,
    }
    serde_json::from_str::<Wrapping>(plugin.get()).is_ok_and(|plugin| plugin.wraps_conf)
}

/// Where in the text a borrowed part of it stands.
fn span(text: &str, part: &RawValue) -> Range<usize> {
    let start = part.get().as_ptr() as usize - text.as_ptr() as usize;
    start..start + part.get().len()
}

#[cfg(test)]
mod tests {
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
    const SINGLE: &str =
        "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"old\",\n  \"type\": \"flannel\"\n}\n";

    fn plugins(text: &str) -> Vec<String> {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let plugins = value["plugins"].as_array().unwrap();
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn inserted_last_and_removed_without_a_trace() {
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
    fn the_rest_keeps_its_form() {
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
    fn of_several_entries_one_stays() {
        let twice = r#"{"plugins":[{"type":"ambit-cni"},{"type":"x"},{"type":"ambit-cni"},{"type":"y"}]}"#;
        let once = with_entry(twice, &entry("a")).unwrap().unwrap();
        assert_eq!(plugins(&once), ["x", "y", PLUGIN]);
        assert_eq!(
            without_entry(&once).unwrap(),
            Without::List(r#"{"plugins":[{"type":"x"},{"type":"y"}]}"#.to_owned())
        );
    }

    #[test]
    fn a_single_plugin_becomes_a_list_and_comes_back() {
        let list = with_entry(SINGLE, &entry("a")).unwrap().unwrap();
        assert_eq!(plugins(&list), ["flannel", PLUGIN]);
        let value: serde_json::Value = serde_json::from_str(&list).unwrap();
        assert_eq!((&value["cniVersion"], &value["name"]), (&"0.3.1".into(), &"old".into()));
        assert_eq!(with_entry(&list, &entry("a")).unwrap(), None, "again");
        let changed = with_entry(&list, &entry("b")).unwrap().unwrap();
        assert_eq!(
            without_entry(&changed).unwrap(),
            Without::Single(SINGLE.to_owned()),
            "also after an upgrade"
        );
        // Somebody has added a plugin to our list: it stays a list.
        let added = list.replace("\n  ]", ",\n    {\"type\": \"later\"}\n  ]");
        assert!(
            matches!(without_entry(&added).unwrap(), Without::List(rest) if plugins(&rest) == ["flannel", "later"])
        );
    }

    #[test]
    fn what_has_no_entry_stays() {
        for text in [PRETTY, COMPACT, SINGLE] {
            assert_eq!(without_entry(text).unwrap(), Without::Same);
        }
        assert_eq!(without_entry(r#"{"plugins":[{"type":"ambit-cni"}]}"#).unwrap(), Without::Nothing);
    }

    #[test]
    fn what_is_no_configuration_is_passed_over() {
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
}
