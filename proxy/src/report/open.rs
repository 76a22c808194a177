//! Connections that this process carries: [`opened`] or [`failed`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ambit_core::Reason;
use parking_lot::Mutex;

use super::connection::{Bytes, ConnectionInfo, Ending, Flag};
use super::ended::{ALL, OPEN, report_end, report_failed};
use super::series::{Labels, Series};

/// An open connection's report. Dropping it reports the end too, as abandoned.
#[derive(Debug)]
#[must_use = "dropping it reports the connection as abandoned"]
pub struct OpenConnection {
    connection: ConnectionInfo,
    since: Instant,
    series: Arc<Series>,
    /// What the metrics know already.
    counted: Mutex<Bytes>,
    reported: bool,
}

/// Counts the connection as opened.
pub fn opened(connection: ConnectionInfo) -> OpenConnection {
    let series = ALL.of(Labels::new(&connection, Flag::None));
    series.opened();
    OPEN.of(connection.direction, connection.path).fetch_add(1, Ordering::Relaxed);
    OpenConnection { connection, since: Instant::now(), series, counted: Mutex::default(), reported: false }
}

/// Reports a connection that was refused or could not be made. `since` is when it was tried.
pub fn failed(connection: &ConnectionInfo, since: Instant, ending: &Ending) {
    report_failed(connection, since.elapsed(), ending);
}

impl OpenConnection {
    /// Who talks to whom.
    pub fn connection(&self) -> &ConnectionInfo {
        &self.connection
    }

    /// When it was opened.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Counts what was carried since the last call. `total` is since the connection was opened; less than was
    /// counted already counts nothing.
    pub fn progress(&self, total: Bytes) {
        let mut counted = self.counted.lock();
        let new = total.since(*counted);
        self.series.carried(new);
        counted.from_client += new.from_client;
        counted.from_server += new.from_server;
    }

    /// Reports the end.
    pub fn closed(mut self, total: Bytes, ending: &Ending) {
        self.progress(total);
        self.report(ending);
    }

    fn report(&mut self, ending: &Ending) {
        self.reported = true;
        OPEN.of(self.connection.direction, self.connection.path).fetch_sub(1, Ordering::Relaxed);
        match ending.flag {
            Flag::None => self.series.closed(),
            flag => ALL.of(Labels::new(&self.connection, flag)).closed(),
        }
        let counted = *self.counted.get_mut();
        report_end(&self.connection, counted, self.since.elapsed(), ending);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if !self.reported {
            self.report(&Ending {
                reason: Reason::Abandoned,
                flag: Flag::None,
                error: Some("its task ended before the connection did".to_owned()),
                policy: None,
            });
        }
    }
}
