//! An error with its causes on one line: [`chain`], or [`chain_as`] where a message needs rewording.

use std::error::Error;

/// The error and its causes, joined by `: `. A cause that its wrapper repeats word for word, as a transparent
/// one does, is printed once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    chain_as(error, |error| (error.to_string(), error.source()))
}

/// [`chain`], where `link` gives each error's message and its cause.
pub fn chain_as<'e>(
    error: &'e (dyn Error + 'static),
    link: impl Fn(&'e (dyn Error + 'static)) -> (String, Option<&'e (dyn Error + 'static)>),
) -> String {
    let (mut text, mut cause) = link(error);
    while let Some(error) = cause {
        let (message, next) = link(error);
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = next;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[derive(Debug, thiserror::Error)]
    enum Layer {
        #[error("failed to read {0}")]
        Outer(&'static str, #[source] std::io::Error),
        #[error(transparent)]
        Wrapped(#[from] std::io::Error),
        #[error("failed to start")]
        Twice(#[source] Box<Layer>),
    }

    #[test]
    fn causes_are_joined_on_one_line() {
        let cause = || std::io::Error::other("no such disk");
        let rows = [
            ("alone", Layer::Wrapped(cause()), "no such disk"),
            ("with its cause", Layer::Outer("a.yaml", cause()), "failed to read a.yaml: no such disk"),
            (
                "with the cause's cause",
                Layer::Twice(Box::new(Layer::Outer("a.yaml", cause()))),
                "failed to start: failed to read a.yaml: no such disk",
            ),
            ("a wrapper", Layer::Twice(Box::new(Layer::Wrapped(cause()))), "failed to start: no such disk"),
        ];
        for (name, error, expected) in rows {
            assert_eq!(chain(&error), expected, "{name}");
        }
    }
}
