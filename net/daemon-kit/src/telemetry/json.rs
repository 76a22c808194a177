//! An event as one line of JSON ([`Json`]), as the library's own format has it, but put together in one
//! piece.
//!
//! With every connection leaving a line on both of its ends, lines are most of what the daemon does for a
//! connection that the kernel carries. The library's format hands each comma and quote through a formatter
//! and checks it to be UTF-8 again (a third of that time, seen with `perf`); here that is done once a line.

use std::cell::RefCell;
use std::fmt;

use serde::Serializer as _;
use serde::ser::SerializeMap as _;
use serde_json::Serializer;
use tracing::{Event, Subscriber};
use tracing_serde::{AsSerde as _, SerdeMapVisitor};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The format. Fields lie beside `timestamp`, `level` and `target`.
pub(super) struct Json;

thread_local! {
    /// The line being put together, and its time.
    static LINE: RefCell<(Vec<u8>, String)> = const { RefCell::new((Vec::new(), String::new())) };
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // Taken out: a value may log while it is written.
        let (mut line, mut time) = LINE.take();
        line.clear();
        time.clear();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        write(&mut line, &time, event).map_err(|_| fmt::Error)?;
        writer.write_str(str::from_utf8(&line).map_err(|_| fmt::Error)?)?;
        LINE.set((line, time));
        Ok(())
    }
}

fn write(line: &mut Vec<u8>, time: &str, event: &Event<'_>) -> Result<(), serde_json::Error> {
    let mut serializer = Serializer::new(&mut *line);
    let mut object = serializer.serialize_map(None)?;
    object.serialize_entry("timestamp", time)?;
    object.serialize_entry("level", &event.metadata().level().as_serde())?;
    let mut fields = SerdeMapVisitor::new(object);
    event.record(&mut fields);
    let mut object = fields.take_serializer()?;
    object.serialize_entry("target", event.metadata().target())?;
    object.end()?;
    line.push(b'\n');
    Ok(())
}
