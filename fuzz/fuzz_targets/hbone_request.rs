//! A CONNECT request with any authority and headers: it is accepted or refused. An accepted request reads the
//! same after it is written.
#![no_main]

use ambit_hbone::request::ConnectRequest;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use libfuzzer_sys::fuzz_target;

/// Reads lines: the authority, then headers as `name: value`.
fn request(data: &[u8]) -> Option<Request<()>> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::try_from(lines.next()?).ok()?;
    for line in lines.take(16) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        request.headers_mut().append(name, value);
    }
    Some(request)
}

fuzz_target!(|data: &[u8]| {
    let Some(request) = request(data) else { return };
    let Ok(read) = ConnectRequest::from_http(&request) else { return };
    let written = read.to_http().expect("an accepted request can be written");
    let again = ConnectRequest::from_http(&written).expect("a written request is accepted");
    assert_eq!(again.authority, read.authority);
    assert_eq!(again.forwarded, read.forwarded);
    assert_eq!(again.traceparent, read.traceparent);
    assert_eq!(again.baggage, read.baggage);
});
