//! Times, tries and their budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ambit_core::inbound::HBONE_PORT;
use ambit_core::mesh::Change;
use ambit_core::model::AppProtocol;
use ambit_core::route::{Rule, Timeouts};
use ambit_core::testing::service;
use ambit_proxy::outbound::{self, Accepted, Asked};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::lab::{
    App, BoxError, Handler, Lab, backend, echo, full, get, get2, handler, retrying, routes, rule, told,
};

/// Fails so many times with a status, then answers with the request's body.
fn failing(times: usize, status: u16) -> Handler {
    let left = Arc::new(AtomicUsize::new(times));
    handler(move |request| {
        let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        async move {
            let body = request
                .into_body()
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            let status = if fails { StatusCode::from_u16(status).expect("a status") } else { StatusCode::OK };
            Response::builder().status(status).body(full(body)).expect("a response")
        }
    })
}

#[tokio::test]
async fn codes_of_a_rule_are_tried_again_as_often_as_it_says() {
    for (name, failures, attempts, codes, status, requests) in [
        ("good at once", 0, 2, &[503][..], 200, 1),
        ("good at the second try", 1, 2, &[503][..], 200, 2),
        ("good at the last try", 2, 2, &[503][..], 200, 3),
        ("never good", 9, 2, &[503][..], 503, 3),
        ("another code", 1, 2, &[500][..], 503, 1),
        ("no tries", 1, 0, &[503][..], 503, 1),
    ] {
        let lab = Lab::new().await;
        let cart = lab.service("cart", 100, AppProtocol::Http11);
        let app = lab.app("cart-1", 11, "cart", failing(failures, 503)).await;
        lab.put([routes("cart", vec![retrying(attempts, codes, "cart")])]);
        let mut request = get("/");
        *request.method_mut() = Method::POST;
        *request.body_mut() = full("pay");
        let told = told(lab.http1(cart).await.send_request(request).await.expect("a response")).await;
        assert_eq!((told.status.as_u16(), app.requests()), (status, requests), "{name}");
        assert_eq!(told.text, "pay", "{name}: the body comes whole each time");
    }
}

#[tokio::test]
async fn a_body_that_comes_late_arrives_exactly_once() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http2);
    // Answers before it has read the body, the first time.
    let first = Arc::new(AtomicUsize::new(0));
    let app = handler(move |request: http::Request<hyper::body::Incoming>| {
        let number = first.fetch_add(1, Ordering::SeqCst);
        async move {
            if number == 0 {
                return Response::builder().status(503).body(full("")).expect("a response");
            }
            let body = request.into_body().collect().await.expect("a whole body").to_bytes();
            Response::new(full(body))
        }
    });
    let app = lab.app("cart-1", 11, "cart", app).await;
    lab.put([routes("cart", vec![retrying(1, &[503], "cart")])]);
    let requests = app.requests.clone();
    // The second half waits for the second try.
    let second = futures::stream::once(async move {
        while requests.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"late")))
    });
    let frames = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"early ")))]).chain(second);
    let body = StreamBody::new(frames).boxed_unsync();
    let request = http::Request::post("http://cart.shop/").body(body).expect("a request");
    let told = told(lab.http2(cart).await.send_request(request).await.expect("a response")).await;
    assert_eq!((told.status, &*told.text), (StatusCode::OK, "early late"));
    assert_eq!(app.requests(), 2);
}

#[tokio::test]
async fn a_body_too_long_to_keep_is_sent_once() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", failing(1, 503)).await;
    lab.put([routes("cart", vec![retrying(3, &[503], "cart")])]);
    let mut request = get("/");
    *request.method_mut() = Method::POST;
    *request.body_mut() = full(vec![b'x'; 1 << 20]);
    let told = told(lab.http1(cart).await.send_request(request).await.expect("a response")).await;
    assert_eq!((told.status.as_u16(), told.text.len(), app.requests()), (503, 1 << 20, 1));
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    const REQUESTS: usize = 300;
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", failing(usize::MAX, 503)).await;
    lab.put([routes("cart", vec![retrying(5, &[503], "cart")])]);
    let mut client = lab.http1(cart).await;
    for _ in 0..REQUESTS {
        client.ready().await.expect("kept alive");
        assert_eq!(told(client.send_request(get("/")).await.expect("a response")).await.status, 503);
    }
    let retries = app.requests() - REQUESTS;
    // A fifth of the requests, and three a second for ten seconds.
    assert!(retries > 0 && retries <= REQUESTS / 5 + 30 + 10, "{retries} retries of {REQUESTS} requests");
}

#[tokio::test]
async fn times_end_a_request_within_a_tenth_of_their_value() {
    const LIMIT: Duration = Duration::from_millis(500);
    let never = || handler(|_| futures::future::pending());
    let trickle = || {
        handler(|_| async {
            let frames = futures::stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x")))]);
            Response::new(StreamBody::new(frames.chain(futures::stream::pending())).boxed_unsync())
        })
    };
    let whole = Timeouts { request: Some(LIMIT), backend_request: None };
    let one = Timeouts { request: None, backend_request: Some(LIMIT) };
    for (name, timeouts, app, status) in [
        ("the whole request", whole, never(), Some(504)),
        ("one try", one, never(), Some(504)),
        ("a response that does not end", whole, trickle(), None),
    ] {
        let lab = Lab::new().await;
        let cart = lab.service("cart", 100, AppProtocol::Http11);
        lab.app("cart-1", 11, "cart", app).await;
        lab.put([routes("cart", vec![Rule { timeouts, ..rule(vec![backend("cart", 1)]) }])]);
        // On a busy machine a timer may be late, but not each time.
        let mut quickest = Duration::MAX;
        for _ in 0..5 {
            let mut client = lab.http1(cart).await;
            let start = Instant::now();
            let response = client.send_request(get("/")).await.expect("a response");
            let begun = response.status();
            let ended = response.into_body().collect().await;
            let took = start.elapsed();
            match status {
                Some(status) => assert_eq!(begun, status, "{name}"),
                None => assert!(ended.is_err(), "{name}: it breaks off"),
            }
            assert!(took >= LIMIT, "{name}: {took:?}");
            quickest = quickest.min(took);
        }
        assert!(quickest < LIMIT + LIMIT / 10, "{name}: {quickest:?}");
    }
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_followed_by_another() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http2);
    let first = Arc::new(AtomicUsize::new(0));
    let app = handler(move |_| {
        let number = first.fetch_add(1, Ordering::SeqCst);
        async move {
            if number == 0 {
                futures::future::pending::<()>().await;
            }
            Response::new(full("second"))
        }
    });
    lab.app("cart-1", 11, "cart", app).await;
    let timeouts = Timeouts { request: None, backend_request: Some(Duration::from_millis(300)) };
    lab.put([routes("cart", vec![Rule { timeouts, ..retrying(1, &[], "cart") }])]);
    let told = told(lab.http2(cart).await.send_request(get2("/")).await.expect("a response")).await;
    assert_eq!((told.status, &*told.text), (StatusCode::OK, "second"));
}

#[tokio::test]
async fn a_retry_goes_to_another_endpoint() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let bad = lab.app("cart-1", 11, "cart", failing(usize::MAX, 503)).await;
    let good = lab.app("cart-2", 12, "cart", echo("good")).await;
    lab.put([routes("cart", vec![retrying(1, &[503], "cart")])]);
    let mut client = lab.http1(cart).await;
    for number in 0..20 {
        client.ready().await.expect("kept alive");
        let told = told(client.send_request(get("/")).await.expect("a response")).await;
        assert_eq!(told.status, StatusCode::OK, "request {number}");
    }
    assert_eq!(good.requests(), 20, "{} were tried on the bad one first", bad.requests());
}

/// The only endpoint of `cart`, whose ztunnel accepts and is gone; by then the service has another one.
async fn replaced(lab: &Arc<Lab>) -> JoinHandle<App> {
    lab.member("cart-1", 11, "cart");
    let leaving = TcpListener::bind(lab.address(11, HBONE_PORT)).await.expect("the endpoint's address");
    let lab = lab.clone();
    tokio::spawn(async move {
        let accepted = leaving.accept().await;
        let app = lab.app("cart-2", 12, "cart", echo("cart-2")).await;
        drop((accepted, leaving));
        app
    })
}

#[tokio::test]
async fn an_endpoint_that_came_after_the_request_is_tried() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let replaced = replaced(&lab).await;
    let mut client = lab.http1(cart).await;
    let told = told(client.send_request(get("/")).await.expect("a response")).await;
    assert_eq!((told.status, told.text.lines().next()), (StatusCode::OK, Some("cart-2")));
    assert_eq!(replaced.await.expect("no panic").requests(), 1);
}

/// The same for connections, as every proxy of the mesh carries them.
#[tokio::test]
async fn an_endpoint_that_came_after_the_connection_is_tried() {
    let lab = Lab::new().await;
    let own = service("shop/cart", &[&lab.ip(100)], &[(80, 8080)]);
    lab.put([Change::PutService(Arc::new(own))]);
    let replaced = replaced(&lab).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("it listens");
    let (stream, peer) = listener.accept().await.expect("a client");
    let asked = Asked { destination: lab.address(100, 80), chosen: None, captures_all: false };
    let accepted = Accepted { stream, client: peer, asked: Ok(asked), held: None };
    let waypoint = &lab.worker.waypoint;
    let (proxy, served) = (waypoint.proxy.clone(), waypoint.served.clone());
    tokio::spawn(outbound::serve(proxy, lab.worker.pool.clone(), served, accepted, |_, _, _| ()));
    let (mut sender, connection) = http1::handshake(TokioIo::new(client)).await.expect("HTTP/1");
    tokio::spawn(connection);
    let told = told(sender.send_request(get("/")).await.expect("a response")).await;
    assert_eq!((told.status, told.text.lines().next()), (StatusCode::OK, Some("cart-2")));
    assert_eq!(replaced.await.expect("no panic").requests(), 1);
}

#[tokio::test]
async fn a_kept_connection_that_has_ended_loses_no_request() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    // Closes after each response without saying so.
    let app = handler(|_| async {
        Response::builder().header("connection", "close").body(full("x")).expect("one")
    });
    let app = lab.app("cart-1", 11, "cart", app).await;
    let mut client = lab.http1(cart).await;
    for number in 0..20 {
        client.ready().await.expect("kept alive");
        let told = told(client.send_request(get("/")).await.expect("a response")).await;
        assert_eq!(told.status, StatusCode::OK, "request {number}");
    }
    assert_eq!(app.requests(), 20);
}
