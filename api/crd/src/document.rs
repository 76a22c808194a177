//! Text → documents: YAML (several documents, `kind: List`) or JSON, each as a JSON value: [`documents`].
//!
//! The text is cut at its document markers first, so that a syntax error in one document does not affect the
//! others.

use serde_json::{Map, Number, Value};
use serde_yaml_ng::Value as Yaml;

/// An object of any kind, as written.
#[derive(Debug)]
pub(crate) struct Written {
    /// The first line of its document, from 1.
    pub(crate) line: usize,
    /// Its index in a `kind: List`.
    pub(crate) item: Option<usize>,
    pub(crate) value: Value,
}

/// A document that is not YAML.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) line: usize,
    pub(crate) message: String,
}

/// All objects of the text, in order.
pub(crate) fn documents(text: &str) -> Vec<Result<Written, Unreadable>> {
    let mut found = Vec::new();
    for (line, chunk) in chunks(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        match read(chunk, line) {
            Ok(Value::Null) => {}
            Ok(value) if is_list(&value) => found.extend(items(value, line)),
            Ok(value) => found.push(Ok(Written { line, item: None, value })),
            Err(message) => found.push(Err(Unreadable { line, message })),
        }
    }
    found
}

/// The texts between document markers, each with its first line. A line that begins with `---` or `...` is a
/// marker everywhere, even inside a block scalar (YAML 1.2, section 9.1.4).
fn chunks(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        let marks = |mark: &str| {
            bare.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
        };
        if marks("---") {
            found.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, index + 1);
        } else if marks("...") {
            found.push((start_line, &text[start..offset]));
            (start, start_line) = (offset + line.len(), index + 2);
        }
        offset += line.len();
    }
    found.push((start_line, &text[start..]));
    found.retain(|(_, chunk)| chunk.lines().any(has_content));
    found
}

/// Whether a line is more than a comment, a directive or a marker.
fn has_content(line: &str) -> bool {
    let content = line.strip_prefix("---").unwrap_or(line).trim_start();
    !(content.is_empty() || content.starts_with('#') || line.starts_with('%'))
}

fn read(chunk: &str, line: usize) -> Result<Value, String> {
    let mut yaml: Yaml = serde_yaml_ng::from_str(chunk).map_err(|error| locate(&error, line))?;
    yaml.apply_merge().map_err(|error| locate(&error, line))?;
    json(yaml)
}

/// The parser counts lines from the start of the document; messages count from the start of the text.
fn locate(error: &serde_yaml_ng::Error, line: usize) -> String {
    let message = error.to_string();
    match error.location() {
        Some(at) => {
            let relative = format!("line {} column {}", at.line(), at.column());
            message.replace(&relative, &format!("line {} column {}", at.line() + line - 1, at.column()))
        }
        None => message,
    }
}

/// JSON has no tags, and its keys are strings; `8080: …` becomes `"8080": …`, as in kubectl.
fn json(yaml: Yaml) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => Value::Bool(value),
        Yaml::Number(number) => Value::Number(json_number(&number)?),
        Yaml::String(text) => Value::String(text),
        Yaml::Sequence(values) => Value::Array(values.into_iter().map(json).collect::<Result<_, _>>()?),
        Yaml::Mapping(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                let key = json_key(key)?;
                let value = json(value)?;
                if map.contains_key(&key) {
                    return Err(format!("the key {key:?} is written twice"));
                }
                map.insert(key, value);
            }
            Value::Object(map)
        }
        Yaml::Tagged(tagged) => return Err(format!("the tag {} is not understood", tagged.tag)),
    })
}

fn json_number(number: &serde_yaml_ng::Number) -> Result<Number, String> {
    let exact = number.as_u64().map(Number::from).or_else(|| number.as_i64().map(Number::from));
    exact
        .or_else(|| number.as_f64().and_then(Number::from_f64))
        .ok_or_else(|| format!("{number} is not a number that can be used"))
}

fn json_key(key: Yaml) -> Result<String, String> {
    match key {
        Yaml::String(text) => Ok(text),
        Yaml::Bool(value) => Ok(value.to_string()),
        Yaml::Number(number) => Ok(number.to_string()),
        _ => Err("a key is neither text nor a number".to_owned()),
    }
}

fn is_list(value: &Value) -> bool {
    value.get("kind").and_then(Value::as_str) == Some("List")
        && value.get("apiVersion").and_then(Value::as_str) == Some("v1")
}

fn items(mut list: Value, line: usize) -> Vec<Result<Written, Unreadable>> {
    match list.get_mut("items").map(Value::take) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(values)) => values
            .into_iter()
            .enumerate()
            .map(|(index, value)| Ok(Written { line, item: Some(index), value }))
            .collect(),
        Some(_) => vec![Err(Unreadable { line, message: "items: a List's items are a sequence".to_owned() })],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Either the values found or the message, per document.
    fn outline(text: &str) -> Vec<(usize, Option<usize>, Result<Value, String>)> {
        documents(text)
            .into_iter()
            .map(|document| match document {
                Ok(written) => (written.line, written.item, Ok(written.value)),
                Err(unreadable) => (unreadable.line, None, Err(unreadable.message)),
            })
            .collect()
    }

    type Found = (usize, Option<usize>, Value);

    #[test]
    fn documents_are_split_and_read() {
        let rows: &[(&str, &str, Vec<Found>)] = &[
            ("nothing", "", vec![]),
            ("only comments and markers", "# a\n---\n# b\n--- # c\n...\n", vec![]),
            ("one", "a: 1", vec![(1, None, json!({"a": 1}))]),
            ("byte order mark", "\u{feff}a: 1", vec![(1, None, json!({"a": 1}))]),
            ("two", "a: 1\n---\nb: 2\n", vec![(1, None, json!({"a": 1})), (2, None, json!({"b": 2}))]),
            (
                "content on the marker",
                "--- {a: 1}\n--- {b: 2}",
                vec![(1, None, json!({"a": 1})), (2, None, json!({"b": 2}))],
            ),
            ("directive", "%YAML 1.2\n---\na: 1\n", vec![(2, None, json!({"a": 1}))]),
            (
                "end marker",
                "a: 1\n...\n---\nb: 2",
                vec![(1, None, json!({"a": 1})), (3, None, json!({"b": 2}))],
            ),
            (
                "windows lines",
                "a: 1\r\n---\r\nb: 2\r\n",
                vec![(1, None, json!({"a": 1})), (2, None, json!({"b": 2}))],
            ),
            ("indented dashes are content", "a: |\n  ---\n  x\n", vec![(1, None, json!({"a": "---\nx\n"}))]),
            (
                "four dashes are content",
                "a: |\n  x\nb: ----",
                vec![(1, None, json!({"a": "x\n", "b": "----"}))],
            ),
            ("json", "{\"a\": [1, null, -2.5]}", vec![(1, None, json!({"a": [1, null, -2.5]}))]),
            ("numbers as keys", "8080: x\ntrue: y", vec![(1, None, json!({"8080": "x", "true": "y"}))]),
            (
                "merge keys",
                "a: &a {x: 1}\nb: {<<: *a, y: 2}",
                vec![(1, None, json!({"a": {"x": 1}, "b": {"x": 1, "y": 2}}))],
            ),
            (
                "list",
                "kind: List\napiVersion: v1\nitems: [{a: 1}, {b: 2}]",
                vec![(1, Some(0), json!({"a": 1})), (1, Some(1), json!({"b": 2}))],
            ),
            ("empty list", "kind: List\napiVersion: v1\n", vec![]),
        ];
        for (name, text, expected) in rows {
            let expected: Vec<_> =
                expected.iter().map(|(line, item, value)| (*line, *item, Ok(value.clone()))).collect();
            assert_eq!(outline(text), expected, "{name}");
        }
    }

    #[test]
    fn a_bad_document_leaves_its_neighbours() {
        let found = outline("a: 1\n---\nb: [1\n---\nc: 3\n");
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], (1, None, Ok(json!({"a": 1}))));
        assert_eq!(found[2], (4, None, Ok(json!({"c": 3}))));
        let (line, _, outcome) = &found[1];
        let message = outcome.as_ref().expect_err("an unclosed sequence");
        assert_eq!(*line, 2);
        assert!(message.contains("line 3") || message.contains("line 4"), "{message}");
    }

    #[test]
    fn invalid_documents_are_refused() {
        let rows = [
            ("a tag", "a: !secret x", "tag"),
            ("a key twice", "a: 1\na: 2", "duplicate"),
            ("a key twice, once as a number", "1: x\n\"1\": y", "twice"),
            ("a sequence as key", "[1]: x", "key"),
            ("not a number", "a: .nan", "number"),
            ("tabs", "a:\n\t- b", "line 2 column 1"),
            ("items that are no sequence", "kind: List\napiVersion: v1\nitems: 3", "items"),
            ("aliases that multiply", &bomb(), "repetition limit"),
            ("too deep", &"[".repeat(100_000), "recursion limit"),
        ];
        for (name, text, expected) in rows {
            let found = outline(text);
            let [(_, _, Err(message))] = &found[..] else { panic!("{name}: {found:?}") };
            assert!(message.contains(expected), "{name}: {message}");
        }
    }

    fn bomb() -> String {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            let aliases = vec![alias; 10].join(",");
            text = format!("{text}a{level}: &a{level} [{aliases}]\n");
        }
        text
    }
}
