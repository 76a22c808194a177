//! Reading Prometheus' text format: enough to count what the daemons report.

use std::collections::BTreeMap;

/// One sample: a metric's name, its labels and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Everything an endpoint reported.
#[derive(Clone, Debug, Default)]
pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    /// Parses an exposition; lines that are not samples are left out.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(sample).collect())
    }

    /// The sum over all samples of a name whose labels include these.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &Sample| {
            labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value))
        };
        self.0.iter().filter(|sample| sample.name == name && has(sample)).map(|sample| sample.value).sum()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (name, rest) = match line.find(['{', ' ']) {
        Some(at) if line.as_bytes()[at] == b'{' => (&line[..at], &line[at + 1..]),
        Some(at) => {
            return Some(Sample {
                name: line[..at].to_owned(),
                labels: BTreeMap::new(),
                value: number(&line[at..])?,
            });
        }
        None => return None,
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(value) = rest.strip_prefix('}') {
            return Some(Sample { name: name.to_owned(), labels, value: number(value)? });
        }
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(key.to_owned(), value);
        rest = after;
    }
}

/// A quoted value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

fn number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], f64);

    #[test]
    fn metrics_samples_are_parsed() {
        let text = "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"q\\\"}z\"} 3\na{x=\"2\",} 4 1700000000\nb \
                    5\nb_bucket{le=\"+Inf\"} 1\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.0.len(), 4);
        let rows: [Row<'_>; 4] = [
            ("all", "a", &[], 7.0),
            ("by label", "a", &[("x", "2")], 4.0),
            ("escaped", "a", &[("y", "q\"}z")], 3.0),
            ("none", "a", &[("x", "3")], 0.0),
        ];
        for (row, name, labels, expected) in rows {
            assert!((metrics.sum(name, labels) - expected).abs() < f64::EPSILON, "{row}");
        }
    }
}
