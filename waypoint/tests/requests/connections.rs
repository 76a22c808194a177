//! TCPRoutes and TLSRoutes: who gets a connection, and which are refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::model::AppProtocol;
use ambit_core::route::RouteKind;
use ambit_hbone::client::Connection;
use ambit_hbone::request::ConnectRequest;
use ambit_waypoint::waypoint::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::lab::{DEADLINE, Lab, backend, invalid, routes_of, rule, tally};

/// An application that says its name once it has got something, and then what it got.
async fn named_app(address: SocketAddr, name: &'static str) {
    let listener = TcpListener::bind(address).await.expect("the application's address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await?;
                stream.write_all(name.as_bytes()).await?;
                stream.write_all(&got).await?;
                stream.shutdown().await
            });
        }
    });
}

/// Two services with an application each, one in front of which routes stand, and a client.
async fn lab() -> (Arc<Lab>, SocketAddr, Connection) {
    let lab = Lab::with(Limits { head: Duration::from_millis(500), ..Limits::default() }).await;
    let cart = lab.service("cart", 100, AppProtocol::Unknown);
    for (name, host) in [("cart", 100), ("one", 101), ("two", 102)] {
        if name != "cart" {
            lab.service(name, host, AppProtocol::Unknown);
        }
        named_app(lab.endpoint(&format!("{name}-app"), host - 80, name).await, name).await;
    }
    let client = lab.connection("web", 200).await;
    (lab, cart, client)
}

/// Who answers to these bytes: `refused` where nobody does.
async fn answers(client: &Connection, to: SocketAddr, said: &[u8]) -> String {
    let Ok(mut tunnel) = client.open(&ConnectRequest::to(to)).await else { return "refused".to_owned() };
    let exchange = async {
        tunnel.write_all(said).await?;
        tunnel.shutdown().await?;
        let mut answer = Vec::new();
        tunnel.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    match tokio::time::timeout(DEADLINE, exchange).await.expect("in time") {
        Ok(answer) if answer.is_empty() => "closed".to_owned(),
        Ok(answer) => {
            assert!(answer.ends_with(said), "the bytes pass as they are");
            String::from_utf8_lossy(&answer[..answer.len() - said.len()]).into_owned()
        }
        Err(_) => "refused".to_owned(),
    }
}

/// A client's hello, in one record or two.
fn hello(server_name: Option<&str>, in_two: bool) -> Vec<u8> {
    let short = |bytes: &[u8]| u16::try_from(bytes.len()).expect("a short field").to_be_bytes();
    let mut extensions = Vec::new();
    if let Some(name) = server_name {
        let entry = [&[0][..], &short(name.as_bytes()), name.as_bytes()].concat();
        let list = [&short(&entry)[..], &entry].concat();
        extensions = [&[0, 0][..], &short(&list), &list].concat();
    }
    let head = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    let body = [&head[..], &short(&extensions), &extensions].concat();
    let message = [&[1, 0][..], &short(&body), &body].concat();
    let record = |part: &[u8]| [&[22, 3, 1][..], &short(part), part].concat();
    if in_two { [record(&message[..9]), record(&message[9..])].concat() } else { record(&message) }
}

#[tokio::test]
async fn connections_are_shared_by_weight_and_an_invalid_backend_refuses_its_share() {
    const CONNECTIONS: usize = 200;
    let (lab, cart, client) = lab().await;
    for (row, backends, expected) in [
        ("one", vec![backend("one", 1)], &["one"][..]),
        ("two by weight", vec![backend("one", 3), backend("two", 1)], &["one", "two"]),
        ("one of no weight", vec![backend("one", 0), backend("two", 1)], &["two"]),
        ("a share that leads to nothing", vec![backend("one", 1), invalid(1)], &["one", "refused"]),
        ("nothing but that", vec![invalid(1)], &["refused"]),
        ("no backend", vec![], &["refused"]),
    ] {
        lab.put([routes_of("cart", RouteKind::Tcp, vec![(&[], vec![rule(backends)])])]);
        let count = if expected.len() > 1 { CONNECTIONS } else { 10 };
        let mut names = Vec::new();
        for _ in 0..count {
            names.push(answers(&client, cart, b"hello").await);
        }
        let counts = tally(names);
        let found: Vec<&str> = counts.keys().map(String::as_str).collect();
        assert_eq!(found, expected, "{row}: {counts:?}");
        // Of 200 the shares are wrong by more than this once in ten million runs.
        let share = |name: &str, of: f64| within(&counts, name, of, CONNECTIONS, 0.19);
        match row {
            "two by weight" => assert!(share("one", 0.75) && share("two", 0.25), "{counts:?}"),
            "a share that leads to nothing" => assert!(share("refused", 0.5), "{counts:?}"),
            _ => {}
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few hundred")]
fn within(counts: &BTreeMap<String, usize>, name: &str, share: f64, of: usize, by: f64) -> bool {
    (counts[name] as f64 / of as f64 - share).abs() < by
}

#[tokio::test]
async fn a_tcp_route_serves_whatever_is_spoken_and_declared() {
    let (lab, cart, client) = lab().await;
    lab.put([routes_of("cart", RouteKind::Tcp, vec![(&[], vec![rule(vec![backend("two", 1)])])])]);
    for protocol in [AppProtocol::Unknown, AppProtocol::Tcp, AppProtocol::Tls, AppProtocol::Http11] {
        lab.service("cart", 100, protocol);
        for said in [&b"EHLO\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", &hello(Some("a.com"), false)] {
            assert_eq!(answers(&client, cart, said).await, "two", "{protocol:?} {said:?}");
        }
    }
}

#[tokio::test]
async fn a_tls_connection_goes_where_its_server_name_says() {
    let (lab, cart, client) = lab().await;
    for protocol in [AppProtocol::Unknown, AppProtocol::Tls] {
        lab.service("cart", 100, protocol);
        let to = |name: &str| vec![rule(vec![backend(name, 1)])];
        let named: Vec<(&[&str], _)> = vec![(&["*.example.com"], to("two")), (&["a.example.com"], to("one"))];
        lab.put([routes_of("cart", RouteKind::Tls, named.clone())]);
        for (row, said, expected) in [
            ("exact", hello(Some("a.example.com"), false), "one"),
            ("in two records", hello(Some("a.example.com"), true), "one"),
            ("a wildcard", hello(Some("b.example.com"), false), "two"),
            ("below a wildcard", hello(Some("c.b.Example.com"), false), "two"),
            ("another name", hello(Some("example.org"), false), "refused"),
            ("no name", hello(None, false), "refused"),
            ("no TLS", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "refused"),
            ("nothing", Vec::new(), "refused"),
        ] {
            assert_eq!(answers(&client, cart, &said).await, expected, "{protocol:?}: {row}");
        }
        let any = [named, vec![(&[], to("cart"))]].concat();
        lab.put([routes_of("cart", RouteKind::Tls, any)]);
        for (row, said, expected) in [
            ("another name", hello(Some("example.org"), false), "cart"),
            ("no name", hello(None, false), "cart"),
            ("no TLS", b"EHLO\r\n".to_vec(), "refused"),
        ] {
            assert_eq!(
                answers(&client, cart, &said).await,
                expected,
                "{protocol:?}, with one for all: {row}"
            );
        }
    }
}

#[tokio::test]
async fn silence_is_no_way_around_a_tls_route() {
    let (lab, cart, client) = lab().await;
    lab.put([routes_of("cart", RouteKind::Tls, vec![(&["a.com"], vec![rule(vec![backend("one", 1)])])])]);
    let mut tunnel = client.open(&ConnectRequest::to(cart)).await.expect("a tunnel");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, tunnel.read_to_end(&mut answer)).await.expect("in time");
    assert!(read.is_err() && answer.is_empty(), "it is reset after a while: {read:?} {answer:?}");
}
