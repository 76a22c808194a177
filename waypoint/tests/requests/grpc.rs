//! gRPC: all kinds of calls, their ends, and large messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_core::model::AppProtocol;
use ambit_core::route::Timeouts;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::channel::mpsc;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;

use crate::hostile::Held;
use crate::lab::{Body, BoxError, DEADLINE, Handler, Lab, backend, handler, routes, rule, told, until};

/// A message as it is on the wire.
fn message(text: impl AsRef<[u8]>) -> Bytes {
    let text = text.as_ref();
    let length = u32::try_from(text.len()).expect("short").to_be_bytes();
    [&[0], &length[..], text].concat().into()
}

fn frames(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Body {
    let frames: Vec<Result<_, BoxError>> = frames.into_iter().map(Ok).collect();
    StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
}

/// What a call ends with.
fn status(code: u16) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    trailers.insert("x-detail", HeaderValue::from_static("kept"));
    Frame::trailers(trailers)
}

fn call(body: Body) -> Request<Body> {
    let request = Request::post("http://cart.shop/shop.Cart/Call").header("te", "trailers");
    request.header("content-type", "application/grpc").body(body).expect("a request")
}

fn answer(body: Body) -> Response<Body> {
    Response::builder().header("content-type", "application/grpc").body(body).expect("a response")
}

/// Sends each message back as it comes, and ends well.
fn mirror() -> Handler {
    handler(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        let messages = request.into_body().into_data_stream();
        let messages = messages.map(|data| data.map(Frame::data).map_err(BoxError::from));
        let end = futures::stream::once(async { Ok(status(0)) });
        answer(StreamBody::new(messages.chain(end)).boxed_unsync())
    })
}

async fn lab(app: Handler) -> (Arc<Lab>, std::net::SocketAddr) {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Grpc);
    lab.app("cart-1", 11, "cart", app).await;
    (lab, cart)
}

#[tokio::test]
async fn calls_of_each_kind_bring_their_messages_and_their_end() {
    let one = || vec![message("one")];
    let many = || vec![message("one"), message("two"), message("three")];
    for (name, asked, answered, code) in [
        ("unary", one(), one(), 0),
        ("streaming by the server", one(), many(), 0),
        ("streaming by the client", many(), one(), 0),
        ("streaming by both", many(), many(), 0),
        ("failed after messages", one(), many(), 13),
        ("without messages", vec![], vec![], 0),
        ("large", vec![message(vec![b'x'; 8 << 20])], vec![message(vec![b'y'; 8 << 20])], 0),
    ] {
        let (expected, given) = (asked.concat(), answered.clone());
        let app = handler(move |request: Request<Incoming>| {
            let (expected, given) = (expected.clone(), given.clone());
            async move {
                let got = request.into_body().collect().await.expect("all messages").to_bytes();
                let code = if got == expected { code } else { 3 };
                answer(frames(given.into_iter().map(Frame::data).chain([status(code)])))
            }
        });
        let (lab, cart) = lab(app).await;
        let request = call(frames(asked.into_iter().map(Frame::data)));
        let response = lab.http2(cart).await.send_request(request).await.expect("a response");
        let body = response.into_body().collect().await.expect("a whole response");
        let trailers = body.trailers().cloned().expect("trailers");
        assert_eq!(trailers["grpc-status"], code.to_string(), "{name}");
        assert_eq!(trailers["x-detail"], "kept", "{name}");
        assert_eq!(body.to_bytes(), answered.concat(), "{name}");
    }
}

#[tokio::test]
async fn messages_of_both_sides_pass_one_by_one() {
    let (lab, cart) = lab(mirror()).await;
    let (said, saying) = mpsc::unbounded();
    let body = StreamBody::new(saying.map(|data| Ok::<_, BoxError>(Frame::data(data)))).boxed_unsync();
    let response = lab.http2(cart).await.send_request(call(body)).await.expect("a head at once");
    let mut body = response.into_body();
    for number in 0..10 {
        let sent = message(format!("message {number}"));
        said.unbounded_send(sent.clone()).expect("open");
        let frame = tokio::time::timeout(DEADLINE, body.frame()).await.expect("its echo before the next");
        assert_eq!(frame.expect("a frame").expect("whole").into_data().expect("data"), sent);
    }
    drop(said);
    let end = body.frame().await.expect("a frame").expect("whole").into_trailers().expect("trailers");
    assert_eq!(end["grpc-status"], "0");
}

#[tokio::test]
async fn a_call_that_ends_with_its_head_ends_with_its_head() {
    let (lab, cart) = lab(handler(|_| async {
        let mut response = answer(frames([]));
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("5"));
        response.headers_mut().insert("grpc-message", HeaderValue::from_static("no%20such%20cart"));
        response
    }))
    .await;
    let response = lab.http2(cart).await.send_request(call(frames([Frame::data(message("x"))]))).await;
    let told = told(response.expect("a response")).await;
    assert_eq!(told.header("grpc-status"), Some("5"));
    assert_eq!(told.header("grpc-message"), Some("no%20such%20cart"));
    assert_eq!((told.text.as_str(), told.trailers), ("", None));
}

/// A call that is answered when nobody wants it any more.
fn never(open: &Arc<AtomicUsize>) -> Handler {
    let open = open.clone();
    handler(move |request: Request<Incoming>| {
        open.fetch_add(1, Ordering::SeqCst);
        let held = Held(open.clone());
        async move {
            let _held = held;
            assert_eq!(request.headers()["grpc-timeout"], "300m", "the server knows the deadline too");
            futures::future::pending::<()>().await;
            answer(frames([]))
        }
    })
}

#[tokio::test]
async fn a_call_that_is_cancelled_is_cancelled_at_the_server() {
    let open = Arc::new(AtomicUsize::new(0));
    let (lab, cart) = lab(never(&open)).await;
    let mut client = lab.http2(cart).await;
    let mut request = call(frames([Frame::data(message("x"))]));
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("300m"));
    let asked = tokio::spawn(async move { client.send_request(request).await.map(drop) });
    until("the server has the call", || open.load(Ordering::SeqCst) == 1).await;
    asked.abort();
    until("the server has lost it", || open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_call_past_the_deadline_of_its_route_ends_as_unavailable() {
    let open = Arc::new(AtomicUsize::new(0));
    let (lab, cart) = lab(never(&open)).await;
    let timeouts = Timeouts { request: Some(std::time::Duration::from_millis(300)), backend_request: None };
    lab.put([routes("cart", vec![ambit_core::route::Rule { timeouts, ..rule(vec![backend("cart", 1)]) }])]);
    let mut request = call(frames([Frame::data(message("x"))]));
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("300m"));
    let response = lab.http2(cart).await.send_request(request).await.expect("a response");
    let told = told(response).await;
    assert_eq!((told.status.as_u16(), told.header("grpc-status")), (200, Some("14")));
    until("the server has lost it", || open.load(Ordering::SeqCst) == 0).await;
}
