//! What there is to say of a request: [`Record`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::model::{Service, Workload};
use ambit_core::route::RouteKey;
use http::{Method, Request, StatusCode, Uri, Version, header};
use tokio::time::Instant;

use crate::body::Count;
use crate::downstream::Downstream;
use crate::failure::Flag;

/// One request, as metrics and the access log tell of it.
#[derive(Debug)]
pub(crate) struct Record {
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
}

impl Record {
    /// Of a request whose head has come.
    pub(super) fn new<B>(downstream: Arc<Downstream>, request: &Request<B>) -> Self {
        let content = request.headers().get(header::CONTENT_TYPE);
        let service = downstream.service().cloned();
        Self {
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
        }
    }

    pub(super) fn took(&self) -> Duration {
        self.since.elapsed()
    }
}
