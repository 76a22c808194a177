//! Clients that mean harm: requests with two meanings, too slow, too many, too large.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ambit_core::model::AppProtocol;
use ambit_waypoint::waypoint::Limits;
use bytes::Bytes;
use futures::StreamExt as _;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{BoxError, DEADLINE, Lab, echo, get, get2, handler, told};

/// What the waypoint answers to these bytes, until it closes or the deadline for a further answer has passed.
async fn answer(lab: &Lab, to: std::net::SocketAddr, bytes: &[u8]) -> String {
    let mut tunnel = lab.tunnel(to).await.expect("a tunnel");
    tunnel.write_all(bytes).await.expect("written");
    let mut answer = Vec::new();
    // A reset is an answer too.
    let _ended = tokio::time::timeout(DEADLINE, tunnel.read_to_end(&mut answer)).await.expect("it ends");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn requests_with_two_meanings_are_refused() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: cart.shop\r\n\r\n";
    for (name, head) in [
        ("two lengths", "Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n"),
        ("two lengths in one line", "Host: a\r\nContent-Length: 5, 6\r\n"),
        ("a signed length", "Host: a\r\nContent-Length: +5\r\n"),
        ("a negative length", "Host: a\r\nContent-Length: -1\r\n"),
        ("an encoding that is not chunked", "Host: a\r\nTransfer-Encoding: xchunked\r\n"),
        ("chunked, and then something else", "Host: a\r\nTransfer-Encoding: chunked, identity\r\n"),
        ("a folded header", "Host: a\r\nX-One: 1\r\n two\r\n"),
        ("a space before the colon", "Host: a\r\nTransfer-Encoding : chunked\r\n"),
        ("a name with a control character", "Host: a\r\nX\x0bOne: 1\r\n"),
        ("a bare carriage return in a value", "Host: a\r\nX-One: 1\rX-Two: 2\r\n"),
        ("two hosts", "Host: a\r\nHost: b\r\n"),
        ("no host", "X-One: 1\r\n"),
        ("a host with a user", "Host: a@b\r\n"),
        ("a host with a path", "Host: a/b\r\n"),
    ] {
        let told = answer(&lab, cart, format!("POST /seen HTTP/1.1\r\n{head}\r\n{hidden}").as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 400 "), "{name}: {told}");
        assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{name}: nothing after it is looked at: {told}");
        assert_eq!(app.requests(), 0, "{name}");
    }
}

#[tokio::test]
async fn a_length_beside_chunks_hides_no_second_request() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: cart.shop\r\n\r\n";
    let chunked = format!("0\r\n\r\n{hidden}");
    for (name, head) in [
        ("length first", format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", chunked.len())),
        ("chunked first", format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", chunked.len())),
    ] {
        let before = app.requests();
        let request = format!("POST /seen HTTP/1.1\r\nHost: cart.shop\r\n{head}\r\n{chunked}");
        let told = answer(&lab, cart, request.as_bytes()).await;
        assert!(!told.contains("/hidden"), "{name}: {told}");
        // RFC 9112, 6.1: it may be read as chunked if the connection is closed after it.
        assert!(app.requests() <= before + 1, "{name}");
    }
}

#[tokio::test]
async fn bare_line_feeds_mean_the_same_behind_the_waypoint() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let told =
        answer(&lab, cart, b"GET /seen HTTP/1.1\nHost: cart.shop\nX-One: 1\nConnection: close\n\n").await;
    if told.starts_with("HTTP/1.1 200 ") {
        assert_eq!(app.requests(), 1);
        assert!(told.contains("x-one: 1\n"), "{told}");
    } else {
        assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
    }
    for chunk in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5;x\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
    ] {
        let before = app.requests();
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}");
        let told = answer(&lab, cart, request.as_bytes()).await;
        assert!(!told.starts_with("HTTP/1.1 200 "), "{chunk:?}: {told}");
        assert!(app.requests() <= before + 1);
    }
}

#[tokio::test]
async fn http2_requests_that_would_be_two_in_http1_are_refused() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    for (name, header, value) in [
        ("chunks", "transfer-encoding", "chunked"),
        ("a connection header", "connection", "close"),
        ("another protocol", "upgrade", "h2c"),
        ("a wrong length", "content-length", "50"),
        ("two hosts", "host", "b,c"),
    ] {
        let mut request = get2("/seen");
        *request.method_mut() = http::Method::POST;
        *request.body_mut() = crate::lab::full("hello");
        request
            .headers_mut()
            .insert(http::HeaderName::from_static(header), http::HeaderValue::from_static(value));
        // hyper's client leaves some of these out by itself; what it sends must be refused or mean one thing.
        let sent = lab.http2(cart).await.send_request(request).await;
        if let Ok(response) = sent
            && response.status() == 200
        {
            let told = told(response).await;
            assert!(told.text.ends_with("\nhello"), "{name}: {}", told.text);
            assert_eq!(told.sent("host"), Some("cart.shop"), "{name}");
            assert_eq!(told.sent("transfer-encoding"), None, "{name}");
        }
    }
    assert!(app.requests() <= 5);
}

#[tokio::test]
async fn heads_have_a_limit() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    for (name, length, refused) in [("a large head", 32 << 10, false), ("too large a head", 80 << 10, true)] {
        let head = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\nConnection: close\r\n\r\n",
            "x".repeat(length)
        );
        let told = answer(&lab, cart, head.as_bytes()).await;
        assert_eq!(told.starts_with("HTTP/1.1 431 "), refused, "{name}: {}", &told[..told.len().min(100)]);
        assert_eq!(told.starts_with("HTTP/1.1 200 "), !refused, "{name}");
    }
}

#[tokio::test]
async fn a_client_that_is_slow_over_its_head_is_cut_off_and_keeps_nobody_waiting() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let lab = Lab::with(limits).await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let connection = lab.connection("web", 200).await;
    let request = ambit_hbone::request::ConnectRequest::to(cart);
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut tunnel = connection.open(&request).await.expect("a tunnel");
        tunnel.write_all(b"GET / HTTP/1.1\r\nHost: ca").await.expect("written");
        slow.push(tunnel);
    }
    let start = Instant::now();
    let told = told(lab.http1(cart).await.send_request(get("/")).await.expect("a response")).await;
    assert_eq!(told.status, 200);
    assert!(start.elapsed() < Duration::from_secs(5), "others are served meanwhile");
    for mut tunnel in slow {
        let mut answer = Vec::new();
        // Cut off in some way: an end, an error status, or a reset.
        let _end =
            tokio::time::timeout(DEADLINE, tunnel.read_to_end(&mut answer)).await.expect("it is cut off");
    }
    // One that sends nothing is not slow: it is idle, and its first request is served.
    let mut idle = lab.http1(cart).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(idle.send_request(get("/")).await.expect("a response").status(), 200);
}

#[tokio::test]
async fn a_connection_without_a_request_ends_after_its_time() {
    let limits = Limits { idle: Duration::from_millis(300), ..Limits::default() };
    let lab = Lab::with(limits).await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    for (name, requests) in [("after its first request", 1), ("after its third", 3)] {
        let mut tunnel = lab.tunnel(cart).await.expect("a tunnel");
        let mut buffer = vec![0; 4096];
        for _ in 0..requests {
            tunnel.write_all(b"GET / HTTP/1.1\r\nHost: cart.shop\r\n\r\n").await.expect("sent");
            let count = tunnel.read(&mut buffer).await.expect("an answer");
            assert!(buffer[..count].starts_with(b"HTTP/1.1 200"), "{name}");
        }
        let answered = Instant::now();
        let ended =
            tokio::time::timeout(DEADLINE, async { while let Ok(1..) = tunnel.read(&mut buffer).await {} });
        ended.await.expect(name);
        assert!(answered.elapsed() >= Duration::from_millis(200), "{name}: after {:?}", answered.elapsed());
    }
}

#[tokio::test]
async fn a_thousand_streams_of_one_client_leave_room_for_others() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http2);
    let open = Arc::new(AtomicUsize::new(0));
    let held = open.clone();
    let app = handler(move |request: http::Request<hyper::body::Incoming>| {
        let held = held.clone();
        async move {
            if request.uri().path() == "/hold" {
                held.fetch_add(1, Ordering::SeqCst);
                futures::future::pending::<()>().await;
            }
            Response::new(crate::lab::full("quick"))
        }
    });
    lab.app("cart-1", 11, "cart", app).await;
    let greedy = lab.http2(cart).await;
    let mut asked = Vec::new();
    for _ in 0..1000 {
        let mut greedy = greedy.clone();
        asked.push(tokio::spawn(async move { greedy.send_request(get2("/hold")).await.map(drop) }));
    }
    crate::lab::until("the client has its share", || open.load(Ordering::SeqCst) >= 100).await;
    assert_eq!(open.load(Ordering::SeqCst), 100, "and no more");
    let mut other = crate::lab::http2(lab.tunnel_of("other", 201, cart).await.expect("a tunnel")).await;
    let told = told(other.send_request(get2("/")).await.expect("a response")).await;
    assert_eq!(told.text, "quick");
    asked.iter().for_each(tokio::task::JoinHandle::abort);
}

/// One that is being answered.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn resets_in_quick_succession_end_the_connection_and_hurt_nobody() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http2);
    let open = Arc::new(AtomicUsize::new(0));
    let held = open.clone();
    let app = handler(move |request: http::Request<hyper::body::Incoming>| {
        held.fetch_add(1, Ordering::SeqCst);
        let held = Held(held.clone());
        async move {
            let _held = held;
            if request.uri().path() == "/hold" {
                futures::future::pending::<()>().await;
            }
            Response::new(crate::lab::full("quick"))
        }
    });
    lab.app("cart-1", 11, "cart", app).await;
    let mut resetting = lab.http2(cart).await;
    for _ in 0..2000 {
        if resetting.ready().await.is_err() {
            break;
        }
        // Sent, and given up at once.
        let sent = resetting.send_request(get2("/hold"));
        let _given_up = tokio::time::timeout(Duration::from_micros(200), sent).await;
    }
    let mut other = crate::lab::http2(lab.tunnel_of("other", 201, cart).await.expect("a tunnel")).await;
    let told = told(other.send_request(get2("/")).await.expect("a response")).await;
    assert_eq!(told.text, "quick");
    crate::lab::until("what was given up is given up behind too", || open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_reader_that_stops_makes_the_endpoint_stop() {
    const WHOLE: usize = 64 << 20;
    const CHUNK: usize = 64 << 10;
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let given = Arc::new(AtomicUsize::new(0));
    let counting = given.clone();
    let app = handler(move |_| {
        let counting = counting.clone();
        async move {
            let chunk = Bytes::from(vec![b'x'; CHUNK]);
            let frames = futures::stream::iter(0..WHOLE / CHUNK).map(move |_| {
                counting.fetch_add(CHUNK, Ordering::SeqCst);
                Ok::<_, BoxError>(Frame::data(chunk.clone()))
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
    });
    lab.app("cart-1", 11, "cart", app).await;
    let mut client = lab.http1(cart).await;
    let response = client.send_request(get("/")).await.expect("a response");
    // It has stopped when it gives no more for a while.
    let mut last = usize::MAX;
    let start = Instant::now();
    while last != given.load(Ordering::SeqCst) {
        assert!(start.elapsed() < DEADLINE, "it goes on and on");
        last = given.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // Windows and buffers of two tunnels, four sockets and HTTP on both sides.
    assert!(last < 24 << 20, "{last} bytes wait somewhere");
    let mut body = response.into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.expect("a frame").into_data().map_or(0, |data| data.len());
    }
    assert_eq!(length, WHOLE, "and all of it comes in the end");
}
