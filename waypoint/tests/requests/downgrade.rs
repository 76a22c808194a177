//! Requests of HTTP/2 that would be another, or two, in the HTTP/1 of their endpoint: each is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_core::model::AppProtocol;
use http::Response;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::frames::{self, Verdict};
use crate::lab::{Lab, echo, full, handler, until};

/// Fields: one that begins with `:` replaces that of [`PLAIN`], `-:` leaves it out, `+:` adds another.
type Fields = &'static [(&'static str, &'static [u8])];

const PLAIN: Fields =
    &[(":method", b"POST"), (":scheme", b"http"), (":authority", b"cart.shop"), (":path", b"/seen")];

fn merged(changes: Fields) -> Vec<(&'static str, &'static [u8])> {
    let mut fields = PLAIN.to_vec();
    for (name, value) in changes {
        let place = |name: &str| PLAIN.iter().position(|(plain, _)| *plain == name).expect("a plain field");
        if let Some(name) = name.strip_prefix('-') {
            fields.retain(|(plain, _)| *plain != name);
        } else if let Some(name) = name.strip_prefix('+') {
            fields.push((name, value));
        } else if name.starts_with(':') {
            fields[place(name)].1 = value;
        } else {
            fields.push((name, value));
        }
    }
    fields
}

const ROWS: &[(&str, Fields)] = &[
    ("a line in a value", &[("x-one", b"1\r\ntransfer-encoding: chunked")]),
    ("a line feed in a value", &[("x-one", b"1\nx-two: 2")]),
    ("a carriage return in a value", &[("x-one", b"1\rx-two: 2")]),
    ("NUL in a value", &[("x-one", b"1\0b")]),
    ("a line in a name", &[("x-one: 1\r\nx-two", b"2")]),
    ("a colon in a name", &[("x-one:", b"2")]),
    ("a space in a name", &[("x one", b"2")]),
    ("a capital in a name", &[("X-One", b"2")]),
    ("an empty name", &[("", b"2")]),
    ("chunks", &[("transfer-encoding", b"chunked")]),
    ("a connection header", &[("connection", b"close")]),
    ("keep-alive", &[("keep-alive", b"timeout=5")]),
    ("proxy-connection", &[("proxy-connection", b"close")]),
    ("another protocol", &[("upgrade", b"h2c")]),
    ("te that is not trailers", &[("te", b"chunked")]),
    ("a length that is none", &[("content-length", b"x")]),
    ("a signed length", &[("content-length", b"+0")]),
    ("a list of lengths", &[("content-length", b"0, 0")]),
    ("an empty length", &[("content-length", b"")]),
    ("a length without a body", &[("content-length", b"5")]),
    ("two lengths", &[("content-length", b"0"), ("content-length", b"5")]),
    ("two equal lengths", &[("content-length", b"0"), ("content-length", b"0")]),
    ("a space in the path", &[(":path", b"/seen HTTP/1.1")]),
    ("a line in the path", &[(":path", b"/seen HTTP/1.1\r\nhost: b\r\n\r\n")]),
    ("NUL in the path", &[(":path", b"/se\0en")]),
    ("a path without a slash", &[(":path", b"seen")]),
    ("no path but the server", &[(":path", b"*")]),
    ("an empty path", &[(":path", b"")]),
    ("no path", &[("-:path", b"")]),
    ("two paths", &[("+:path", b"/hidden")]),
    ("a method that is two words", &[(":method", b"GET /hidden")]),
    ("a line in the method", &[(":method", b"GET / HTTP/1.1\r\nx")]),
    ("no method", &[("-:method", b"")]),
    ("two methods", &[("+:method", b"GET")]),
    ("no scheme", &[("-:scheme", b"")]),
    ("a host with a user", &[(":authority", b"a@b")]),
    ("a host with a path", &[(":authority", b"a/b")]),
    ("a host with a space", &[(":authority", b"a b")]),
    ("a line in the host", &[(":authority", b"a\r\nx: y")]),
    ("no host", &[("-:authority", b"")]),
    ("another host", &[("host", b"other.shop")]),
    ("two hosts", &[("host", b"cart.shop"), ("host", b"cart.shop")]),
    ("two authorities", &[("+:authority", b"other.shop")]),
    ("an unknown pseudo-header", &[("+:foo", b"1")]),
    ("a pseudo-header after a header", &[("x-one", b"1"), ("+:path", b"/hidden")]),
    ("CONNECT", &[(":method", b"CONNECT"), ("-:scheme", b""), ("-:path", b"")]),
    ("CONNECT for another protocol", &[(":method", b"CONNECT"), ("+:protocol", b"websocket")]),
];

const SERVED: &[(&str, Fields)] =
    &[("plain", &[]), ("the same host again", &[("host", b"Cart.Shop")]), ("te", &[("te", b"trailers")])];

#[tokio::test]
async fn http2_requests_that_mean_another_in_http1_are_refused() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let mut passed = Vec::new();
    for (name, changes) in ROWS {
        let mut tunnel = lab.tunnel(cart).await.expect("a tunnel");
        let bytes = [frames::opening(), frames::headers(&merged(changes), true)].concat();
        tunnel.write_all(&bytes).await.expect("written");
        let before = (app.requests(), app.connections());
        if frames::verdict(&mut tunnel).await == Verdict::Ok || (app.requests(), app.connections()) != before
        {
            passed.push(name);
        }
    }
    assert_eq!(passed, [&""; 0]);
    assert_eq!((app.requests(), app.connections()), (0, 0));
    // The same by the same means is served where nothing is wrong with it.
    for (name, changes) in SERVED {
        let mut tunnel = lab.tunnel(cart).await.expect("a tunnel");
        let bytes = [frames::opening(), frames::headers(&merged(changes), true)].concat();
        tunnel.write_all(&bytes).await.expect("written");
        assert_eq!(frames::verdict(&mut tunnel).await, Verdict::Ok, "{name}");
    }
}

/// The head may have been passed on before the body shows the lie: no server sees a whole request.
#[tokio::test]
async fn lengths_that_lie_make_no_whole_request() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let (ended, whole) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = [ended.clone(), whole.clone()];
    let app = handler(move |request: http::Request<hyper::body::Incoming>| {
        let [ended, whole] = counts.clone();
        async move {
            let is_whole = request.into_body().collect().await.is_ok();
            whole.fetch_add(usize::from(is_whole), Ordering::SeqCst);
            ended.fetch_add(1, Ordering::SeqCst);
            Response::new(full("answered"))
        }
    });
    let app = lab.app("cart-1", 11, "cart", app).await;
    for (name, length) in [("more than there is", &b"50"[..]), ("less", b"2"), ("none", b"0")] {
        let mut tunnel = lab.tunnel(cart).await.expect("a tunnel");
        let fields = [PLAIN, &[("content-length", length)]].concat();
        let bytes = [frames::opening(), frames::headers(&fields, false), frames::data(b"hello")].concat();
        tunnel.write_all(&bytes).await.expect("written");
        assert_ne!(frames::verdict(&mut tunnel).await, Verdict::Ok, "{name}");
        until(name, || ended.load(Ordering::SeqCst) == app.requests()).await;
        assert_eq!(whole.load(Ordering::SeqCst), 0, "{name}");
    }
}
