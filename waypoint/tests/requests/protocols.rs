//! What is not a plain request: WebSocket, TLS, TCP, and connections whose protocol is found out.

use std::net::SocketAddr;
use std::time::Duration;

use ambit_core::model::AppProtocol;
use http::{HeaderValue, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::lab::{DEADLINE, Lab, backend, echo, full, get, handler, routes, rule};

/// An application that speaks first, or echoes.
async fn tcp_app(address: SocketAddr, greeting: &'static str) {
    let listener = TcpListener::bind(address).await.expect("the application's address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(greeting.as_bytes()).await?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await?;
                write.shutdown().await
            });
        }
    });
}

#[tokio::test]
async fn bytes_of_any_protocol_pass_where_no_route_says_http() {
    let lab = Lab::new().await;
    let hello = &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 3][..];
    for (name, host, protocol, greeting, said) in [
        ("a server that speaks first", 100, AppProtocol::Unknown, "220 ready\r\n", &b""[..]),
        ("a client hello", 101, AppProtocol::Unknown, "", hello),
        ("a line that is not HTTP", 102, AppProtocol::Unknown, "", b"EHLO there\r\n"),
        ("declared TCP that looks like HTTP", 103, AppProtocol::Tcp, "", b"GET / HTTP/1.1\r\n\r\n"),
        ("declared TLS", 104, AppProtocol::Tls, "", hello),
    ] {
        let service = format!("tcp-{host}");
        let address = lab.service(&service, host, protocol);
        tcp_app(lab.endpoint(&format!("app-{host}"), host - 80, &service).await, greeting).await;
        let mut tunnel = lab.tunnel(address).await.expect("a tunnel");
        tunnel.write_all(said).await.expect("written");
        if !greeting.is_empty() {
            let mut first = vec![0; greeting.len()];
            tokio::time::timeout(DEADLINE, tunnel.read_exact(&mut first)).await.expect(name).expect(name);
            assert_eq!(first, greeting.as_bytes(), "{name}");
        }
        tunnel.write_all(b"more").await.expect("written");
        tunnel.shutdown().await.expect("ended");
        let mut answer = Vec::new();
        tokio::time::timeout(DEADLINE, tunnel.read_to_end(&mut answer)).await.expect(name).expect(name);
        assert_eq!(answer, [said, b"more"].concat(), "{name}");
    }
}

#[tokio::test]
async fn silence_is_no_way_around_the_routes_of_a_port() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Unknown);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    lab.put([routes("cart", vec![rule(vec![backend("cart", 1)])])]);
    let mut tunnel = lab.tunnel(cart).await.expect("a tunnel");
    // Longer than a port without routes is listened to.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(app.connections(), 0, "nothing was connected for it");
    tunnel.write_all(b"NOT HTTP\r\n\r\n").await.expect("written");
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, tunnel.read_to_string(&mut answer)).await.expect("in time").expect("read");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn a_tcp_client_learns_that_no_endpoint_is_there() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Tcp);
    assert!(lab.tunnel(cart).await.is_err(), "no endpoint at all");
    lab.member("cart-1", 11, "cart");
    assert!(lab.tunnel(cart).await.is_err(), "one that nobody listens at");
}

#[tokio::test]
async fn websockets_echo() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = handler(|mut request| async move {
        let asked = request.headers().get("upgrade").cloned();
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.expect("upgraded"));
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).await.expect("five bytes");
            stream.write_all(&bytes).await.expect("written");
            stream.shutdown().await.expect("ended");
        });
        let response = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", asked.expect("the wish came through"))
            .header("sec-websocket-accept", "x");
        response.body(full("")).expect("a response")
    });
    lab.app("cart-1", 11, "cart", app).await;
    let mut request = get("/chat");
    request.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    let mut client = lab.http1(cart).await;
    let response = client.send_request(request).await.expect("a response");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["sec-websocket-accept"], "x");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    stream.write_all(b"hello").await.expect("written");
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("in time").expect("read");
    assert_eq!(answer, "hello");
}

#[tokio::test]
async fn after_an_upgrade_each_side_ends_by_itself() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let (got, mut told) = tokio::sync::mpsc::unbounded_channel();
    let app = handler(move |mut request| {
        let (upgrade, got) = (hyper::upgrade::on(&mut request), got.clone());
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.expect("upgraded"));
            stream.shutdown().await.expect("ended");
            let mut late = Vec::new();
            stream.read_to_end(&mut late).await.expect("what comes after its own end");
            got.send(late).expect("awaited");
        });
        let response = Response::builder().status(101).header("connection", "upgrade");
        let response = response.header("upgrade", "websocket").body(full("")).expect("a response");
        async { response }
    });
    lab.app("cart-1", 11, "cart", app).await;
    let mut request = get("/chat");
    request.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    let response = lab.http1(cart).await.send_request(request).await.expect("a response");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer));
    assert_eq!(read.await.expect("in time").expect("the server's end"), 0);
    // More than is under way at a time, so that the waypoint waits for the server with the client's bytes.
    let late = vec![b'x'; 8 << 20];
    let sent = async {
        stream.write_all(&late).await?;
        stream.shutdown().await
    };
    tokio::time::timeout(DEADLINE, sent).await.expect("in time").expect("sent");
    let got = tokio::time::timeout(DEADLINE, told.recv()).await.expect("in time");
    assert_eq!(got.expect("the server lives").len(), late.len());
}
