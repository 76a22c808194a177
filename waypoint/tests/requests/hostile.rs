//! Clients that mean harm: too slow, too many, too large. Requests with two meanings are in `smuggling`.

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
use crate::smuggling::answer;

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
    // The second is the beginning of what every client of HTTP/2 says first.
    for said in [&b"GET / HTTP/1.1\r\nHost: ca"[..], b"PRI * HTT"] {
        for _ in 0..50 {
            let mut tunnel = connection.open(&request).await.expect("a tunnel");
            tunnel.write_all(said).await.expect("written");
            slow.push(tunnel);
        }
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
pub(crate) struct Held(pub(crate) Arc<AtomicUsize>);

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

#[tokio::test]
async fn clients_that_are_slow_and_clients_that_reset_starve_nobody() {
    const REQUESTS: usize = 300;
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http2);
    lab.app("cart-1", 11, "cart", handler(|_| async { Response::new(crate::lab::full("quick")) })).await;
    let connection = lab.connection("slow", 201).await;
    let request = ambit_hbone::request::ConnectRequest::to(cart);
    let mut slow = Vec::new();
    for _ in 0..90 {
        let mut tunnel = connection.open(&request).await.expect("a tunnel");
        tunnel.write_all(b"GET / HTTP/1.1\r\nHost: ca").await.expect("written");
        slow.push(tunnel);
    }
    let resets = Arc::new(AtomicUsize::new(0));
    let (count, flooding) = (resets.clone(), lab.clone());
    let flood = tokio::spawn(async move {
        loop {
            let tunnel = flooding.tunnel_of("resetting", 202, cart).await.expect("a tunnel");
            let mut client = crate::lab::http2(tunnel).await;
            while client.ready().await.is_ok() {
                let sent = client.send_request(get2("/"));
                // Sent at the next turn of this thread, and given up at once.
                let _given_up = tokio::time::timeout(Duration::from_micros(1), sent).await;
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let mut other = crate::lab::http2(lab.tunnel_of("other", 203, cart).await.expect("a tunnel")).await;
    let mut times = Vec::new();
    let began = Instant::now();
    // Until it was a flood, too.
    while times.len() < REQUESTS || resets.load(Ordering::SeqCst) <= REQUESTS {
        assert!(began.elapsed() < DEADLINE, "{} resets are no flood", resets.load(Ordering::SeqCst));
        let start = Instant::now();
        let told = told(other.send_request(get2("/")).await.expect("a response")).await;
        times.push(start.elapsed());
        assert_eq!(told.text, "quick");
    }
    flood.abort();
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    println!("p99 {p99:?} of {}, {} resets meanwhile", times.len(), resets.load(Ordering::SeqCst));
    // All of it shares one thread here: what is measured is that its turn comes.
    assert!(p99 < Duration::from_secs(1), "{p99:?}");
}
