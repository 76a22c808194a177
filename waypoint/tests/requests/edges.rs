//! The edges of HTTP: `Expect`, CONNECT, informational responses, requests one behind the other.

use std::fmt::Write as _;
use std::net::SocketAddr;

use ambit_core::model::AppProtocol;
use ambit_hbone::Tunnel;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::lab::{DEADLINE, Lab, echo, get, told};
use crate::smuggling::answer;

/// Reads until this text has come.
async fn read_until(tunnel: &mut Tunnel, text: &str) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&bytes).contains(text) {
            assert_ne!(tunnel.read_buf(&mut bytes).await.expect("read"), 0, "it ended before {text:?}");
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect(text);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_client_that_waits_for_leave_to_send_its_body_gets_it_from_the_waypoint() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let mut tunnel = lab.tunnel(cart).await.expect("a tunnel");
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    tunnel.write_all(head.as_bytes()).await.expect("written");
    let leave = read_until(&mut tunnel, "\r\n\r\n").await;
    assert_eq!(leave, "HTTP/1.1 100 Continue\r\n\r\n");
    tunnel.write_all(b"hello").await.expect("written");
    let answer = read_until(&mut tunnel, "\n\nhello").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(!answer.contains("expect"), "{answer}");
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn connect_is_refused() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    // The other one would be answered with 200, were it answered as gRPC: a tunnel.
    for field in ["X-Other: 1", "Content-Type: application/grpc"] {
        let head = format!("CONNECT other:80 HTTP/1.1\r\nHost: other:80\r\n{field}\r\n\r\n");
        let bytes = head + "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
        let told = answer(&lab, cart, bytes.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 405 "), "{field}: {told}");
        assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{field}: and closed: {told}");
    }
    assert_eq!((app.requests(), app.connections()), (0, 0));
}

/// An application that answers every connection with these bytes once it was asked something.
async fn saying(address: SocketAddr, bytes: &'static str) {
    let listener = TcpListener::bind(address).await.expect("the application's address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") && stream.read_buf(&mut asked).await? > 0 {}
                stream.write_all(bytes.as_bytes()).await?;
                stream.shutdown().await
            });
        }
    });
}

#[tokio::test]
async fn informational_responses_do_not_pass_for_the_answer() {
    let lab = Lab::new().await;
    let end = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone";
    for (name, host, informational) in [
        ("none", 100, ""),
        ("leave to continue", 101, "HTTP/1.1 100 Continue\r\n\r\n"),
        ("early hints", 102, "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"),
        ("several", 103, "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"),
    ] {
        let service = format!("cart-{host}");
        let cart = lab.service(&service, host, AppProtocol::Http11);
        let bytes: &'static str = Box::leak(format!("{informational}{end}").into_boxed_str());
        saying(lab.endpoint(&format!("app-{host}"), host - 80, &service).await, bytes).await;
        let told = told(lab.http1(cart).await.send_request(get("/")).await.expect("a response")).await;
        assert_eq!((told.status.as_u16(), &*told.text), (200, "done"), "{name}");
    }
}

#[tokio::test]
async fn requests_one_behind_the_other_are_answered_in_their_order() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    let bodies =
        ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"];
    let mut bytes = String::new();
    for number in 0..10 {
        let body = bodies[number % 2];
        let _ = write!(bytes, "POST /number/{number} HTTP/1.1\r\nHost: a\r\n{body}");
    }
    bytes.push_str("HEAD /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let told = answer(&lab, cart, bytes.as_bytes()).await;
    let asked: Vec<&str> = told.lines().filter(|line| line.starts_with("POST ")).collect();
    let expected: Vec<String> = (0..10).map(|number| format!("POST /number/{number} HTTP/1.1")).collect();
    assert_eq!(asked, expected);
    assert_eq!(app.requests(), 11);
}
