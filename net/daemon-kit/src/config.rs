//! Configuration files: YAML in which every field is checked and an unknown one refused. Entry point:
//! [`read`].

#[cfg(any(test, feature = "testing"))]
pub mod mistakes;

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::Error;

/// A field and what is wrong with it; the field is empty where the whole text is wrong.
pub type Mistake = (String, String);

/// Reads a file and has `check` make a valid configuration of it.
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

/// Parses a text's fields.
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
mod tests;
