use super::*;

/// The samples and heads of the families whose names begin so, in order.
fn lines(text: &str, name: &str) -> Vec<String> {
    let mine =
        |line: &&str| line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ").starts_with(name);
    let mut lines: Vec<_> = text.lines().filter(mine).map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn families_and_samples_are_written() {
    let mut all = Exposition::default();
    all.family(&Family::counter("shown_a_total", "Counts a."))
        .sample(&[("kind", "x"), ("odd", "a\"b\nd")], 7_u64)
        .sample(&[], 8_u64);
    all.single(&Family::gauge("shown_b", "Shows b."), true);
    all.single(&Family::counter("shown_c_seconds_total", "Takes c."), 0.5);
    all.family(&Family::gauge("shown_d", "Shows no d."));
    let text = all.into_text();
    assert_eq!(
        lines(&text, "shown_"),
        [
            "# HELP shown_a_total Counts a.",
            "# HELP shown_b Shows b.",
            "# HELP shown_c_seconds_total Takes c.",
            "# HELP shown_d Shows no d.",
            "# TYPE shown_a_total counter",
            "# TYPE shown_b gauge",
            "# TYPE shown_c_seconds_total counter",
            "# TYPE shown_d gauge",
            "shown_a_total 8",
            r#"shown_a_total{kind="x",odd="a\"b\nd"} 7"#,
            "shown_b 1",
            "shown_c_seconds_total 0.5",
        ],
        "{text}"
    );
}

#[test]
fn different_label_values_stay_distinct() {
    let values = ["\\", "\\\\", "\\\"", "\"", "\\n", "\n", "\\\n", "a\\", "\\a"];
    let mut all = Exposition::default();
    let mut family = all.family(&Family::gauge("odd_values", "Odd."));
    for (number, value) in values.iter().enumerate() {
        family.sample(&[("value", value)], number);
    }
    let shown = lines(&all.into_text(), "odd_values{");
    let mut expected: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(number, value)| {
            let escaped = value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
            format!("odd_values{{value=\"{escaped}\"}} {number}")
        })
        .collect();
    expected.sort();
    assert_eq!(shown, expected);
}

#[test]
fn removed_series_are_not_shown() {
    const HELD: Family = Family::gauge("held_things", "Things held.");
    let shown = |things: &[&str]| {
        let mut all = Exposition::default();
        let mut family = all.family(&HELD);
        for thing in things {
            family.sample(&[("thing", thing)], 1_u64);
        }
        lines(&all.into_text(), "held_things{")
    };
    assert_eq!(shown(&["a", "b"]).len(), 2);
    assert_eq!(shown(&["b"]), [r#"held_things{thing="b"} 1"#]);
}
