//! The access log record: one event of target `access` when a request has ended.
//!
//! Entry point: [`write()`].

use ambit_core::model::Workload;

use super::record::Record;

/// What filters call these events.
const TARGET: &str = "access";

/// Writes the record: at WARN when the waypoint had to answer itself or a side broke off, else at INFO.
pub(super) fn write(request: &Record) {
    // The level of an event is fixed where it is written, so there are two.
    macro_rules! record {
        ($level:expr) => {
            if tracing::enabled!(target: TARGET, $level) {
                let downstream = &request.downstream;
                let (source, workload) = (downstream.source.as_deref(), request.workload.as_deref());
                tracing::event!(
                    target: TARGET,
                    parent: None,
                    $level,
                    src.addr = %downstream.client,
                    src.workload = source.map(pod_name),
                    src.namespace = &*downstream.identity.namespace,
                    src.identity = %downstream.identity,
                    dst.addr = request.endpoint.map(tracing::field::display),
                    dst.hbone_addr = %downstream.dialled,
                    dst.service = request.service.as_deref().map(|service| &*service.key.hostname),
                    dst.workload = workload.map(pod_name),
                    dst.namespace = workload.map(|workload| &*workload.namespace),
                    path = "waypoint",
                    method = request.method.as_str(),
                    url = request.uri.path_and_query().map(http::uri::PathAndQuery::as_str),
                    authority = request.host.as_deref(),
                    protocol = ?request.version,
                    response_code = request.status.map(|status| status.as_u16()),
                    grpc_status = request.grpc_status,
                    response_flags = request.flag.as_str(),
                    route = request.route.as_ref().map(tracing::field::display),
                    tries = request.tries,
                    bytes_sent = request.response_bytes,
                    bytes_recv = request.request.bytes(),
                    duration = %format_args!("{}ms", request.took().as_millis()),
                    error = request.error.as_deref(),
                    "request complete"
                );
            }
        };
    }
    if request.error.is_some() {
        record!(tracing::Level::WARN);
    } else {
        record!(tracing::Level::INFO);
    }
}

/// Logs tell single pods apart, unlike metrics.
fn pod_name(workload: &Workload) -> &str {
    if workload.name.is_empty() { &workload.canonical_name } else { &workload.name }
}
