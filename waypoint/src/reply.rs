//! Answers of the waypoint's own: [`failure`], and those that a rule gives ([`answer`]).

use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::body::{Delivery, ResponseBody};
use crate::failure::{Failure, Flag};
use crate::report::Exchange;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What a client is answered whose request failed; a gRPC client in gRPC's words.
pub(crate) fn failure(mut exchange: Box<Exchange>, failure: &Failure) -> Response<ResponseBody> {
    exchange.failed(failure);
    let (status, flag) = failure.meaning();
    let mut headers = HeaderMap::new();
    if flag == Flag::Protocol || flag == Flag::Client {
        // What comes next on this connection may be anything.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    // A CONNECT whose answer has a 2xx would become a tunnel.
    if exchange.is_grpc && exchange.method != Method::CONNECT {
        return grpc(exchange, status, headers, failure.text());
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer(exchange, status, headers, failure.text())
}

/// An answer with these headers and this text.
pub(crate) fn answer(
    mut exchange: Box<Exchange>,
    status: StatusCode,
    headers: HeaderMap,
    text: &'static str,
) -> Response<ResponseBody> {
    exchange.status = Some(status);
    let is_http2 = exchange.version == http::Version::HTTP_2;
    // hyper leaves it out in HTTP/1 alone.
    let text = if is_http2 && exchange.method == Method::HEAD { "" } else { text };
    exchange.response_bytes = text.len() as u64;
    let body = ResponseBody::text(text, Delivery::new(exchange, None, None));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if is_http2 {
        response.headers_mut().remove(CONNECTION);
    }
    response
}

/// A response without a body, whose status is in the headers.
fn grpc(
    mut exchange: Box<Exchange>,
    status: StatusCode,
    mut headers: HeaderMap,
    text: &'static str,
) -> Response<ResponseBody> {
    let code = grpc_code(status);
    exchange.grpc_status = Some(code);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(text));
    answer(exchange, StatusCode::OK, headers, "")
}

/// What gRPC's own table makes of HTTP statuses.
fn grpc_code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
