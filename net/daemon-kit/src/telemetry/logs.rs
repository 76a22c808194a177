//! Logs: text or JSON on standard output, through a filter that can be changed while running.
//!
//! A log that nobody reads must not stop a connection: lines go through a bounded queue to a thread of their
//! own, and are dropped (and counted, `ambit_log_lines_dropped_total`) when it is full. A line is one event
//! whatever the values in it say: control characters are escaped.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::exposition::{Exposition, Family};
use super::json::Json;
pub use super::queue::Flush;
use super::queue::{self, Queue};
use crate::Error;

/// Directives a filter may have.
const MAX_DIRECTIVES: usize = 64;

const DROPPED: Family = Family::counter(
    "ambit_log_lines_dropped_total",
    "Log lines dropped because they were not read fast enough.",
);
const WAITING: Family = Family::gauge("ambit_log_lines_waiting", "Log lines that wait to be read.");

/// Where the process's log lines go, once they are started.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// How logs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line of `key=value`.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// The `log` part of a daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub format: Format,
    /// Directives as in `info,access=off,ambit_hbone=debug`.
    pub filter: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::Text, filter: "info".to_owned() }
    }
}

/// Changes the filter of running logs. Clones are the same logs.
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    handle: reload::Handle<Targets, Registry>,
    /// As it was written, for showing.
    text: Mutex<String>,
}

/// Starts the process's logs. Once per process.
pub fn install(settings: &Settings) -> Result<(Control, Flush), Error> {
    let failed = |message: String| Error::InstallLogs { message };
    let (queue, flush) =
        queue::start(io::stdout()).map_err(|error| failed(format!("the thread: {error}")))?;
    let (subscriber, control) = subscriber(settings, Lines(queue.clone()))?;
    tracing::subscriber::set_global_default(subscriber).map_err(|error| failed(error.to_string()))?;
    // Only one caller gets past the line above.
    let _ = QUEUE.set(queue);
    Ok((control, flush))
}

impl Control {
    /// The filter in force.
    pub fn filter(&self) -> String {
        self.0.text.lock().clone()
    }

    /// Puts another filter in force. A bad one is refused and changes nothing.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        let targets = parse_filter(filter)?;
        let mut text = self.0.text.lock();
        self.0
            .handle
            .reload(targets)
            .map_err(|error| Error::LogFilter { filter: filter.to_owned(), message: error.to_string() })?;
        filter.trim().clone_into(&mut text);
        Ok(())
    }
}

/// Writes the log's own metrics.
pub(super) fn show(all: &mut Exposition) {
    let (dropped, waiting) = QUEUE.get().map_or((0, 0), |queue| (queue.dropped(), queue.waiting()));
    all.single(&DROPPED, dropped);
    all.single(&WAITING, waiting);
}

/// The formatting layers over `writer`, and what changes their filter.
pub fn subscriber<W>(
    settings: &Settings,
    writer: W,
) -> Result<(impl tracing::Subscriber + Send + Sync + use<W>, Control), Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse_filter(&settings.filter)?);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let lines = match settings.format {
        Format::Text => lines.boxed(),
        Format::Json => lines.event_format(Json).boxed(),
    };
    let control = Control(Arc::new(Shared { handle, text: Mutex::new(settings.filter.trim().to_owned()) }));
    Ok((tracing_subscriber::registry().with(lines.with_filter(filter)), control))
}

/// Reads `level` and `target=level` directives. Stricter than the libraries' own parsers, which take a
/// misspelt level for a target and silence everything else.
pub fn parse_filter(filter: &str) -> Result<Targets, Error> {
    let bad = |message: String| Error::LogFilter { filter: filter.to_owned(), message };
    let directives: Vec<&str> = filter.split(',').map(str::trim).collect();
    if directives.len() > MAX_DIRECTIVES {
        return Err(bad(format!("more than {MAX_DIRECTIVES} directives")));
    }
    let mut targets = Targets::new();
    for directive in directives {
        targets = match directive.split_once('=') {
            None => targets.with_default(parse_level(directive).map_err(bad)?),
            Some((target, level)) => {
                let target = target.trim();
                let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-' | '.');
                if target.is_empty() || !target.chars().all(name) {
                    return Err(bad(format!(
                        "{target:?} is not a target such as ambit_hbone::pool or access"
                    )));
                }
                targets.with_target(target, parse_level(level.trim()).map_err(bad)?)
            }
        };
    }
    Ok(targets)
}

fn parse_level(level: &str) -> Result<LevelFilter, String> {
    Ok(match level.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::OFF,
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "info" => LevelFilter::INFO,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => return Err(format!("{level:?} is not a level: off, error, warn, info, debug, trace")),
    })
}

/// Writes each event as exactly one line.
#[derive(Clone, Debug)]
struct Lines<W>(W);

impl<'a> MakeWriter<'a> for Lines<Queue> {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}

impl<W: Write> Write for Lines<W> {
    /// The formatter hands over a whole event at a time, ended by a line feed.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match one_line(event) {
            None => self.0.write_all(event)?,
            Some(line) => self.0.write_all(line.as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The event with what could forge or hide a line escaped; `None` when there is nothing to escape.
fn one_line(event: &[u8]) -> Option<String> {
    let body = event.strip_suffix(b"\n").unwrap_or(event);
    if body.iter().all(|byte| matches!(byte, 0x20..0x7f)) {
        return None;
    }
    let mut line = String::with_capacity(event.len() + 16);
    for c in String::from_utf8_lossy(body).chars() {
        if c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).expect("logs are UTF-8")
        }
    }

    fn logs(format: Format, filter: &str) -> (Sink, impl tracing::Subscriber + Send + Sync, Control) {
        let sink = Sink::default();
        let make = {
            let sink = sink.clone();
            move || Lines(sink.clone())
        };
        let settings = Settings { format, filter: filter.to_owned() };
        let (subscriber, control) = subscriber(&settings, make).expect("a good filter");
        (sink, subscriber, control)
    }

    #[test]
    fn good_filters() {
        for filter in ["info", "INFO", "off", "warn,access=off", " debug , ambit_hbone::pool=trace "] {
            assert!(parse_filter(filter).is_ok(), "{filter:?}");
        }
    }

    #[test]
    fn bad_filters_say_what_is_bad() {
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
    fn the_filter_changes_while_running() {
        let (sink, subscriber, control) = logs(Format::Text, "warn");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("one");
            control.set("info,quiet=off").expect("a good filter");
            tracing::info!("two");
            tracing::error!(target: "quiet", "three");
            control.set("nonsense").expect_err("a bad filter");
            tracing::info!("four");
        });
        assert_eq!(control.filter(), "info,quiet=off");
        let text = sink.text();
        let said: Vec<bool> =
            ["one", "two", "three", "four"].iter().map(|word| text.contains(word)).collect();
        assert_eq!(said, [false, true, false, true], "{text}");
    }

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        let evil = "x\n2026-01-01 INFO access: forged\r\u{1b}[2K\u{2028}\u{9b}31m\u{202e}é";
        for format in [Format::Text, Format::Json] {
            let (sink, subscriber, _control) = logs(format, "info");
            tracing::subscriber::with_default(subscriber, || {
                tracing::info!(quoted = evil, raw = %evil, "message {evil}");
            });
            let text = sink.text();
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
    fn a_value_may_log_while_it_is_written() {
        for format in [Format::Text, Format::Json] {
            let (sink, subscriber, _control) = logs(format, "info");
            tracing::subscriber::with_default(subscriber, || tracing::info!(value = %Talkative, "outside"));
            let text = sink.text();
            assert!(
                text.lines().any(|line| line.contains("outside") && line.contains("talkative")),
                "{text}"
            );
        }
    }

    #[test]
    fn json_is_one_flat_object() {
        let (sink, subscriber, _control) = logs(Format::Json, "info");
        tracing::subscriber::with_default(subscriber, || {
            tracing::event!(
                target: "access",
                tracing::Level::INFO,
                src.addr = "10.0.0.1:7",
                bytes_sent = 5_u64,
                "connection complete"
            );
        });
        let value: serde_json::Value = serde_json::from_str(&sink.text()).expect("JSON");
        assert_eq!(value["target"], "access");
        assert_eq!(value["src.addr"], "10.0.0.1:7");
        assert_eq!(value["bytes_sent"], 5);
    }
}
