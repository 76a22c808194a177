//! Logs kept in memory, for tests. Entry point: [`capture`].

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Control, Format, Lines, Settings, subscriber};

/// What has been logged.
#[derive(Clone, Debug, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// The lines so far.
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).expect("logs are UTF-8")
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A subscriber for `tracing::subscriber::with_default` whose lines can be read.
pub fn capture(
    format: Format,
    filter: &str,
) -> (Captured, impl tracing::Subscriber + Send + Sync + use<>, Control) {
    let captured = Captured::default();
    let make = {
        let captured = captured.clone();
        move || Lines(captured.clone())
    };
    let settings = Settings { format, filter: filter.to_owned() };
    let (subscriber, control) = subscriber(&settings, make).expect("a good filter");
    (captured, subscriber, control)
}
