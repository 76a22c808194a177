use super::captured::capture;
use super::*;

#[test]
fn valid_filters_are_accepted() {
    for filter in ["info", "INFO", "off", "warn,access=off", " debug , ambit_hbone::pool=trace "] {
        assert!(parse_filter(filter).is_ok(), "{filter:?}");
    }
}

#[test]
fn invalid_filters_say_what_is_wrong() {
    let many = vec!["info"; MAX_DIRECTIVES + 1].join(",");
    for (name, filter, says) in [
        ("empty", "", "\"\" is not a level"),
        ("misspelt level", "debgu", "\"debgu\" is not a level"),
        ("misspelt level of a target", "access=loud", "\"loud\" is not a level"),
        ("empty directive", "info,,debug", "\"\" is not a level"),
        ("no target", "=debug", "\"\" is not a target"),
        ("span syntax", "a[b{c=d}]=info", "is not a target"),
        ("control characters", "a\nb=info", "\"a\\nb\" is not a target"),
        ("very many", many.as_str(), "more than 64 directives"),
    ] {
        let error = parse_filter(filter).expect_err(name).to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
}

#[test]
fn filter_changes_at_runtime() {
    let (captured, subscriber, control) = capture(Format::Text, "warn");
    tracing::subscriber::with_default(subscriber, || {
        tracing::info!("one");
        control.set("info,quiet=off").expect("a good filter");
        tracing::info!("two");
        tracing::error!(target: "quiet", "three");
        control.set("nonsense").expect_err("a bad filter");
        tracing::info!("four");
    });
    assert_eq!(control.filter(), "info,quiet=off");
    let text = captured.text();
    let said: Vec<bool> = ["one", "two", "three", "four"].iter().map(|word| text.contains(word)).collect();
    assert_eq!(said, [false, true, false, true], "{text}");
}

#[test]
fn event_is_one_line_whatever_its_values() {
    let evil = "x\n2026-01-01 INFO access: forged\r\u{1b}[2K\u{2028}\u{9b}31m\u{202e}é";
    for format in [Format::Text, Format::Json] {
        let (captured, subscriber, _control) = capture(format, "info");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(quoted = evil, raw = %evil, "message {evil}");
        });
        let text = captured.text();
        assert_eq!(text.matches('\n').count(), 1, "{format:?}: {text:?}");
        assert!(text.ends_with('\n') && text.contains('é'), "{format:?}: {text:?}");
        let hidden = text.trim_end_matches('\n').chars().find(|c| c.is_control() || *c == '\u{202e}');
        assert_eq!(hidden, None, "{format:?}: {text:?}");
    }
}

/// Logs itself while it is written.
struct Talkative;

impl std::fmt::Display for Talkative {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        tracing::info!("from within");
        f.write_str("talkative")
    }
}

#[test]
fn value_may_log_while_it_is_formatted() {
    for format in [Format::Text, Format::Json] {
        let (captured, subscriber, _control) = capture(format, "info");
        tracing::subscriber::with_default(subscriber, || tracing::info!(value = %Talkative, "outside"));
        let text = captured.text();
        assert!(text.lines().any(|line| line.contains("outside") && line.contains("talkative")), "{text}");
    }
}

#[test]
fn json_is_one_flat_object() {
    let (captured, subscriber, _control) = capture(Format::Json, "info");
    tracing::subscriber::with_default(subscriber, || {
        tracing::event!(
            target: "access",
            tracing::Level::INFO,
            src.addr = "10.0.0.1:7",
            bytes_sent = 5_u64,
            "connection complete"
        );
    });
    let value: serde_json::Value = serde_json::from_str(&captured.text()).expect("JSON");
    assert_eq!(value["target"], "access");
    assert_eq!(value["src.addr"], "10.0.0.1:7");
    assert_eq!(value["bytes_sent"], 5);
}
