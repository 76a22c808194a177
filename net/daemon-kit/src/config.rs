//! Configuration files: YAML in which every field is named and checked and an unknown one refused. Way in:
//! [`read`].

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::Error;

/// What is wrong, and with which field; the field is empty where it is the whole.
pub type Mistake = (String, String);

/// Reads a file and has `check` make a valid configuration of what it says.
pub fn read<T: DeserializeOwned, C>(
    path: &Path,
    check: impl FnOnce(T) -> Result<C, Mistake>,
) -> Result<C, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::ReadConfig { path: path.to_owned(), source })?;
    parse(&text).and_then(check).map_err(|(field, message)| {
        let message = if field.is_empty() { message } else { format!("{field}: {message}") };
        Error::Config { path: path.to_owned(), message }
    })
}

/// A text's fields.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Mistake> {
    serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(text)).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." || field == "?" { String::new() } else { field };
        let message = error.into_inner().to_string();
        // The parser names the field too, or the one that it is in.
        let message = match message.split_once(": ") {
            Some((at, rest)) if field.starts_with(at) => rest.to_owned(),
            _ => message,
        };
        (field, message)
    })
}

/// Whether a text is `host:port`, as `field` must be.
pub(crate) fn host_and_port(field: &str, text: &str) -> Result<(), Mistake> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port != 0)) {
        return Ok(());
    }
    Err((field.to_owned(), "is not host:port".to_owned()))
}

/// Whether there is any text, as `field` must have.
pub(crate) fn not_empty(field: &str, text: &str) -> Result<(), Mistake> {
    if text.is_empty() { Err((field.to_owned(), "is empty".to_owned())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
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
    fn mistakes_name_file_and_field() {
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
        assert!(error.starts_with("reading /no/such.yaml: "), "{error}");
    }
}
