//! The end of a waypoint: what is under way ends in order.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::model::AppProtocol;
use ambit_hbone::relay::Side;
use http::Response;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use crate::lab::{Lab, echo, full, get, get2, handler, told, until};

#[tokio::test]
async fn requests_under_way_are_answered_and_the_next_go_elsewhere() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Unknown);
    let gate = Arc::new(Semaphore::new(0));
    let waiting = gate.clone();
    let app = handler(move |request: http::Request<hyper::body::Incoming>| {
        let waiting = waiting.clone();
        async move {
            if request.uri().path() == "/slow" {
                let _passed = waiting.acquire().await;
            }
            Response::new(full("done"))
        }
    });
    let app = lab.app("cart-1", 11, "cart", app).await;
    let mut idle = lab.http1(cart).await;
    told(idle.send_request(get("/")).await.expect("a response")).await;
    let (mut one, mut two) = (lab.http1(cart).await, lab.http2(cart).await);
    let one_under_way = tokio::spawn(one.send_request(get("/slow")));
    let two_under_way = tokio::spawn(two.send_request(get2("/slow")));
    until("both are under way", || app.requests() == 3).await;

    let drain = lab.worker.waypoint.proxy.drain.clone();
    drain.start();
    // On a connection that was idle when the drain began: its request was on its way, perhaps.
    idle.ready().await.expect("still open");
    let told_idle = told(idle.send_request(get("/")).await.expect("a response")).await;
    assert_eq!((told_idle.status.as_u16(), told_idle.header("connection")), (200, Some("close")));
    gate.add_permits(2);
    let one = told(one_under_way.await.expect("no panic").expect("a response")).await;
    assert_eq!((&*one.text, one.header("connection")), ("done", Some("close")));
    let two_told = told(two_under_way.await.expect("no panic").expect("a response")).await;
    assert_eq!(two_told.text, "done");
    until("HTTP/2 takes no more requests", || two.is_closed()).await;
    drain.finish(Duration::from_secs(20)).await.expect("nothing is left");
}

/// The waypoint ends the connection after the answer; a client may have sent its request and end its side
/// only then.
#[tokio::test]
async fn a_client_that_ends_after_its_answer_is_not_reset() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let mut tunnel = lab.tunnel(cart).await.expect("a tunnel");
    let drain = lab.worker.waypoint.proxy.drain.clone();
    drain.start();
    tunnel.write_all(b"GET / HTTP/1.1\r\nHost: cart.shop\r\n\r\n").await.expect("it is open");
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).await.expect("the answer, and its end");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let reset = poll_fn(|context| Side::poll_failure(&mut tunnel, context));
    let reset = tokio::time::timeout(Duration::from_millis(500), reset).await;
    assert!(reset.is_err(), "{reset:?}");
    tunnel.shutdown().await.expect("the client's end");
    drain.finish(Duration::from_secs(20)).await.expect("nothing is left");
}

#[tokio::test]
async fn a_drain_that_takes_too_long_is_cut() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", handler(|_| futures::future::pending())).await;
    let mut client = lab.http1(cart).await;
    let under_way = tokio::spawn(client.send_request(get("/")));
    until("it is under way", || app.requests() == 1).await;
    let drain = lab.worker.waypoint.proxy.drain.clone();
    assert!(drain.finish(Duration::from_millis(300)).await.is_err(), "something was cut");
    let ended = tokio::time::timeout(crate::lab::DEADLINE, under_way).await.expect("it ends");
    assert!(ended.expect("no panic").is_err(), "cut, not answered");
    drop(lab.app("cart-2", 12, "cart", echo("cart-2")).await);
}
