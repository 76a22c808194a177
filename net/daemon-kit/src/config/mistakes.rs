//! Rows of configurations with a mistake, for the daemons' tests. Entry point: [`assert_mistakes`].

use std::fmt::Debug;

use super::Mistake;

/// Requires of each row (name, text, field, part of the message) that the text is refused with that field and
/// that message.
pub fn assert_mistakes<C: Debug>(
    rows: &[(&str, &str, &str, &str)],
    parse: impl Fn(&str) -> Result<C, Mistake>,
) {
    for (name, text, field, message) in rows {
        let (found, error) = parse(text).expect_err(name);
        assert_eq!(found, *field, "{name}: {error}");
        assert!(error.contains(message), "{name}: {error}");
    }
}
