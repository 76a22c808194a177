//! Logs: text or JSON on standard output, through a filter that can be changed while running.
//!
//! A log that is not read must not stop a connection: lines go through a bounded queue to a thread of their
//! own, and are dropped (and counted, `ambit_log_lines_dropped_total`) when it is full. A line is one event
//! whatever the values in it say: control characters are escaped.
//!
//! Entry point: [`install`].

#[cfg(any(test, feature = "testing"))]
pub mod captured;

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
use crate::error::Error;

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
    /// Text or JSON.
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
    let (queue, flush) =
        queue::start(io::stdout()).map_err(|error| Error::InstallLogs { source: Box::new(error) })?;
    let (subscriber, control) = subscriber(settings, Lines(queue.clone()))?;
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|error| Error::InstallLogs { source: Box::new(error) })?;
    // Only one caller gets past the line above.
    let _ = QUEUE.set(queue);
    Ok((control, flush))
}

impl Control {
    /// The filter in force.
    pub fn filter(&self) -> String {
        self.0.text.lock().clone()
    }

    /// Changes the filter. An invalid one is refused and changes nothing.
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
mod tests;
