//! Type URLs of messages in an `Any`.

/// The prefix of every type URL.
const PREFIX: &str = "type.googleapis.com/";

/// The type URL of the message `name`.
pub(crate) fn type_url(name: &str) -> String {
    format!("{PREFIX}{name}")
}
