//! An error with its causes on one line: [`chain`].

use std::error::Error;

/// The error and its causes, joined by `: `. A cause that its wrapper repeats word for word, as a transparent
/// one does, is printed once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::chain;

    #[derive(Debug, thiserror::Error)]
    enum Layer {
        #[error("reading {0}")]
        Outer(&'static str, #[source] std::io::Error),
        #[error(transparent)]
        Wrapped(#[from] std::io::Error),
        #[error("starting")]
        Twice(#[source] Box<Layer>),
    }

    #[test]
    fn causes_are_joined_on_one_line() {
        let cause = || std::io::Error::other("no such disk");
        let rows = [
            ("alone", Layer::Wrapped(cause()), "no such disk"),
            ("with its cause", Layer::Outer("a.yaml", cause()), "reading a.yaml: no such disk"),
            (
                "with the cause's cause",
                Layer::Twice(Box::new(Layer::Outer("a.yaml", cause()))),
                "starting: reading a.yaml: no such disk",
            ),
            ("a wrapper", Layer::Twice(Box::new(Layer::Wrapped(cause()))), "starting: no such disk"),
        ];
        for (name, error, expected) in rows {
            assert_eq!(chain(&error), expected, "{name}");
        }
    }
}
