//! The report of a request: metrics and one access log record when it has ended. [`Exchange`] gathers
//! what there is to say, and says it once: dropped without an end, it was the client that broke off.

mod access_log;
mod counting;
mod record;
mod series;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use http::Request;

use self::record::Record;
pub(crate) use self::series::{Cache, show};
use crate::downstream::Downstream;
use crate::failure::{Failure, Flag};

/// One request, from its head to the end of its response.
#[derive(Debug)]
pub(crate) struct Exchange {
    record: Record,
    reported: bool,
}

impl Exchange {
    pub(crate) fn begin<B>(downstream: Arc<Downstream>, request: &Request<B>) -> Box<Self> {
        downstream.request_begins();
        Box::new(Self { record: Record::new(downstream, request), reported: false })
    }

    /// The waypoint answers itself, because of this.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        let (status, flag) = failure.meaning();
        self.status = Some(status);
        self.fail(failure, flag);
    }

    /// The response has been handed over whole.
    pub(crate) fn delivered(&mut self) {
        self.report();
    }

    /// The response has begun, and this cuts it short.
    pub(crate) fn broke(&mut self, failure: &Failure) {
        let (_, flag) = failure.meaning();
        self.fail(failure, flag);
        self.report();
    }

    fn fail(&mut self, failure: &Failure, flag: Flag) {
        // The first cause is the one that counts.
        if self.flag == Flag::None {
            self.flag = flag;
        }
        self.error.get_or_insert_with(|| failure.to_string());
    }

    fn report(&mut self) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        self.downstream.request_ended();
        counting::count(self);
        access_log::write(self);
    }
}

impl Deref for Exchange {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

impl DerefMut for Exchange {
    fn deref_mut(&mut self) -> &mut Record {
        &mut self.record
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.reported {
            self.broke(&Failure::Client("it was gone before the response had ended".to_owned()));
        }
    }
}
