//! The report of a request: metrics and one access log record when it has ended. [`Exchange`] knows what
//! there is to say, and says it once: dropped without an end, it was the client that broke off.

mod access_log;
mod series;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::model::{Service, Workload};
use ambit_core::route::RouteKey;
use http::{Method, Request, StatusCode, Uri, Version, header};
use tokio::time::Instant;

pub(crate) use self::series::{Cache, show};
use crate::body::Count;
use crate::downstream::Downstream;
use crate::failure::{Failure, Flag};

/// One request, from its head to the end of its response.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) downstream: Arc<Downstream>,
    /// When its head had come.
    pub(crate) since: Instant,
    pub(crate) method: Method,
    /// As the client wrote it.
    pub(crate) uri: Uri,
    pub(crate) host: Option<Box<str>>,
    pub(crate) version: Version,
    pub(crate) is_grpc: bool,
    /// How much of its body has been read.
    pub(crate) request: Count,
    pub(crate) response_bytes: u64,
    pub(crate) status: Option<StatusCode>,
    pub(crate) grpc_status: Option<u16>,
    pub(crate) flag: Flag,
    pub(crate) error: Option<String>,
    /// The route that was taken.
    pub(crate) route: Option<RouteKey>,
    /// The backend.
    pub(crate) service: Option<Arc<Service>>,
    /// Its endpoint.
    pub(crate) workload: Option<Arc<Workload>>,
    pub(crate) endpoint: Option<SocketAddr>,
    /// How often it was sent.
    pub(crate) tries: u32,
    reported: bool,
}

impl Exchange {
    pub(crate) fn begin<B>(downstream: Arc<Downstream>, request: &Request<B>) -> Box<Self> {
        downstream.request_begins();
        let content = request.headers().get(header::CONTENT_TYPE);
        let service = downstream.service().cloned();
        Box::new(Self {
            downstream,
            since: Instant::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: None,
            version: request.version(),
            is_grpc: content.is_some_and(|it| it.as_bytes().starts_with(b"application/grpc")),
            request: Count::default(),
            response_bytes: 0,
            status: None,
            grpc_status: None,
            flag: Flag::None,
            error: None,
            route: None,
            service,
            workload: None,
            endpoint: None,
            tries: 0,
            reported: false,
        })
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

    pub(crate) fn took(&self) -> Duration {
        self.since.elapsed()
    }

    fn report(&mut self) {
        if std::mem::replace(&mut self.reported, true) {
            return;
        }
        self.downstream.request_ended();
        series::count(self);
        access_log::write(self);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.reported {
            self.broke(&Failure::Client("it was gone before the response had ended".to_owned()));
        }
    }
}
