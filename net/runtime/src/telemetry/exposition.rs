//! Prometheus' text format, version 0.0.4: [`Exposition`] is written family by family.

use std::fmt::Write as _;

/// What the format is called in `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric's name, kind and one sentence.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

impl Family {
    /// A number that only grows; its name ends in `_total`.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Counter, help }
    }

    /// A number as it is now.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Gauge, help }
    }

    /// How often a number was how large; its name ends in a unit.
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Histogram, help }
    }
}

/// A sample's value, written as Prometheus reads it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Whole(u64),
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(u64::try_from(value).unwrap_or(u64::MAX))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

/// The text as far as it is written.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// Writes one family's samples.
#[derive(Debug)]
pub struct Samples<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Exposition {
    /// Begins a family. All of its samples follow at once; each family is begun once.
    pub fn family(&mut self, family: &Family) -> Samples<'_> {
        let Family { name, kind, help } = family;
        let text = &mut self.text;
        // Writing to a text does not fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str());
        Samples { text, name }
    }

    /// A family with one sample and no labels.
    pub fn single(&mut self, family: &Family, value: impl Into<Value>) {
        self.family(family).sample(&[], value);
    }

    pub fn into_text(self) -> String {
        self.text
    }
}

impl Samples<'_> {
    /// One sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) -> &mut Self {
        self.written("", &label_text(labels), value.into())
    }

    /// One sample whose labels were written before, by [`label_text`]. `suffix`: `_bucket` and the like.
    pub(super) fn written(&mut self, suffix: &str, labels: &str, value: Value) -> &mut Self {
        let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
        let _ = write!(self.text, "{}{suffix}{open}{labels}{close} ", self.name);
        let _ = match value {
            Value::Whole(value) => writeln!(self.text, "{value}"),
            Value::Real(value) => writeln!(self.text, "{value}"),
        };
        self
    }
}

/// Labels as they stand between the braces.
pub(super) fn label_text(labels: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_samples() {
        let mut all = Exposition::default();
        all.family(&Family::counter("a_total", "Counts a."))
            .sample(&[("kind", "x"), ("odd", "a\"b\\c\nd")], 7_u64)
            .sample(&[], 0.5);
        all.single(&Family::gauge("b", "Shows b."), true);
        assert_eq!(
            all.into_text(),
            "# HELP a_total Counts a.\n# TYPE a_total counter\n\
             a_total{kind=\"x\",odd=\"a\\\"b\\\\c\\nd\"} 7\na_total 0.5\n\
             # HELP b Shows b.\n# TYPE b gauge\nb 1\n"
        );
    }
}
