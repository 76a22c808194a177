use super::*;

/// The samples of the family of this name, in order.
fn text(name: &str, show: impl Fn(&mut Exposition)) -> Vec<String> {
    let mut all = Exposition::default();
    show(&mut all);
    let text = all.into_text();
    let mut lines: Vec<_> = text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn counter_is_shown_before_first_increment() {
    static COUNTER: Counter = Counter::new("one_total", "one");
    assert_eq!(text("one_total", |all| COUNTER.show(all)), ["one_total 0"]);
    COUNTER.count();
    assert_eq!(text("one_total", |all| COUNTER.show(all)), ["one_total 1"]);
}

#[test]
fn counters_are_distinguished_by_labels() {
    static COUNTERS: Counters<2> = Counters::new("apart_total", "c", ["a", "b"]);
    for values in [["1", "2"], ["1", "3"], ["1", "2"]] {
        COUNTERS.count(values);
    }
    assert_eq!(
        text("apart_total", |all| COUNTERS.show(all)),
        [r#"apart_total{a="1",b="2"} 2"#, r#"apart_total{a="1",b="3"} 1"#]
    );
}

#[test]
fn counter_label_sets_are_bounded() {
    let counters = Counters::new("bound_total", "c", ["a"]);
    for number in 0..2 * MAX_SETS {
        counters.count([&number.to_string()]);
    }
    assert_eq!(text("bound_total", |all| counters.show(all)).len(), MAX_SETS);
    let left_out = format!(r#"ambit_metrics_uncounted_total{{metric="bound_total"}} {MAX_SETS}"#);
    assert_eq!(text("ambit_metrics_uncounted_total", show), [left_out]);
}

#[test]
fn histogram_buckets_are_cumulative() {
    static HISTOGRAM: Durations = Durations::new("d_seconds", "d", "way", &["in", "out"]);
    for milliseconds in [1, 1, 2, 20_000] {
        HISTOGRAM.observe("in", Duration::from_millis(milliseconds));
    }
    HISTOGRAM.observe("neither", Duration::ZERO);
    let lines = text("d_seconds", |all| HISTOGRAM.show(all));
    let value = |start: &str| {
        let line = lines.iter().find(|line| line.starts_with(start)).expect(start);
        line.rsplit_once(' ').expect("a value").1
    };
    for (bound, below) in [("0.0005", "0"), ("0.001", "2"), ("0.0025", "3"), ("10", "3"), ("+Inf", "4")] {
        assert_eq!(value(&format!(r#"d_seconds_bucket{{way="in",le="{bound}"}}"#)), below, "{bound}");
    }
    assert_eq!(value(r#"d_seconds_sum{way="in"}"#), "20.004");
    assert_eq!(value(r#"d_seconds_count{way="in"}"#), "4");
    assert_eq!(value(r#"d_seconds_count{way="out"}"#), "0");
}
