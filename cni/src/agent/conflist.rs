//! A CNI configuration with our entry, or without it: text to text. Only our entry's characters change; the
//! text and the formatting of others stay.
//!
//! Entry points: [`with_entry`] and [`without_entry`].

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::entry::{Entry, PLUGIN};

/// The form of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A list of plugins.
    List,
    /// A single plugin.
    Single,
}

/// Why a file is not a configuration. Runtimes ignore such files too.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConflistError {
    #[error("failed to parse the CNI configuration: not JSON: {0}")]
    Json(String),
    #[error("failed to parse the CNI configuration: neither a list of plugins nor a plugin")]
    Neither,
    #[error("failed to parse the CNI configuration: its list has no plugins")]
    Empty,
}

/// A file's text without our entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Without {
    /// There was no entry.
    Same,
    List(String),
    /// The list was ours; this is the single plugin that it wraps.
    Single(String),
    /// The list had only our entry.
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

/// The form of a configuration.
pub(crate) fn form(text: &str) -> Result<Form, ConflistError> {
    let outer = Outer::parse(text)?;
    match (outer.plugins, outer.kind) {
        (Some(plugins), _) if plugins.is_empty() => Err(ConflistError::Empty),
        (Some(_), _) => Ok(Form::List),
        (None, Some(kind)) if !kind.is_empty() => Ok(Form::Single),
        (None, _) => Err(ConflistError::Neither),
    }
}

/// The configuration as a list with our entry: at its end, or where it stands already. `None`: no change is
/// needed.
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
                    // Two files were merged. One entry is enough.
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

/// A list that wraps a single plugin, whose text is unchanged.
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
mod tests;
