use std::future::ready;
use std::io::{Read, Write};
use std::net::TcpStream as Client;
use std::time::Instant;

use super::super::{Request, Response};
use super::*;

fn start(router: Router) -> (Admin, SocketAddr) {
    let address = "127.0.0.1:0".parse().expect("an address");
    let admin = Admin::start(vec![Server { name: "test", address, router }]).expect("a free port");
    let address = admin.addresses()[0];
    (admin, address)
}

fn router() -> Router {
    Router::new()
        .get("/text", |_| ready(Response::text("hello\n")))
        .get("/json", |request: Request| ready(Response::json(&request.query)))
        .post("/echo", |request: Request| ready(Response::text(String::from_utf8_lossy(&request.body))))
}

/// Sends bytes and reads until the server closes.
fn exchange(address: SocketAddr, request: &str) -> String {
    let mut client = Client::connect(address).expect("a server");
    client.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    // A server that refuses early may close before all is sent.
    let _ = client.write_all(request.as_bytes());
    let mut answer = Vec::new();
    match client.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&answer)),
    }
    String::from_utf8(answer).expect("text")
}

#[test]
fn requests_are_answered_or_refused() {
    let (_admin, address) = start(router());
    let big_head = format!(
        "GET /text HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx: {}\r\n\r\n",
        "x".repeat(MAX_HEAD_BYTES)
    );
    let many = format!("GET /text HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(MAX_HEADERS + 1));
    let big_body = format!(
        "POST /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 70000\r\n\r\n{}",
        "x".repeat(70_000)
    );
    let close = "host: a\r\nconnection: close\r\n";
    for (name, request, status, says) in [
        ("text", format!("GET /text HTTP/1.1\r\n{close}\r\n"), "200 OK", "\r\n\r\nhello\n"),
        ("type", format!("GET /text HTTP/1.1\r\n{close}\r\n"), "200 OK", "text/plain"),
        ("head", format!("HEAD /text HTTP/1.1\r\n{close}\r\n"), "200 OK", "content-length: 6"),
        ("query", format!("GET /json?a=b%2Cc HTTP/1.1\r\n{close}\r\n"), "200 OK", "\"a\": \"b,c\""),
        ("json", format!("GET /json HTTP/1.1\r\n{close}\r\n"), "200 OK", "application/json"),
        (
            "post",
            format!("POST /echo HTTP/1.1\r\n{close}content-length: 2\r\n\r\nok"),
            "200 OK",
            "\r\n\r\nok",
        ),
        ("path", format!("GET /none HTTP/1.1\r\n{close}\r\n"), "404 Not Found", "/json"),
        ("method of path", format!("POST /text HTTP/1.1\r\n{close}\r\n"), "405", "allow: GET"),
        ("method", format!("DELETE /text HTTP/1.1\r\n{close}\r\n"), "405", "allow: GET"),
        ("bad query", format!("GET /json?a=%ff HTTP/1.1\r\n{close}\r\n"), "400", "not UTF-8"),
        (
            "browser",
            format!("POST /echo HTTP/1.1\r\norigin: http://x\r\n{close}\r\n"),
            "403",
            "from a web page",
        ),
        ("big head", big_head, "431", ""),
        ("many headers", many, "431", ""),
        ("big body", big_body, "413", "longer than"),
        ("not HTTP", "\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), "400", ""),
    ] {
        let answer = exchange(address, &request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer:?}");
        assert!(answer.contains(says), "{name}: {answer:?}");
    }
}

#[test]
fn bind_error_names_the_address() {
    let (_admin, address) = start(Router::new());
    let error = Admin::start(vec![Server { name: "metrics", address, router: Router::new() }]);
    let text = error.expect_err("the port is taken").to_string();
    assert_eq!(text, format!("failed to listen on {address} for the metrics server"));
}

#[tokio::test]
async fn stop_waits_for_requests_in_progress() {
    let (began, mut begin) = tokio::sync::mpsc::unbounded_channel();
    let finish = Arc::new(tokio::sync::Notify::new());
    let wait = finish.clone();
    let (admin, address) = start(Router::new().get("/slow", move |_| {
        let (began, wait) = (began.clone(), wait.clone());
        async move {
            began.send(()).expect("the test waits");
            wait.notified().await;
            Response::text("done\n")
        }
    }));
    let client = thread::spawn(move || exchange(address, "GET /slow HTTP/1.1\r\nhost: a\r\n\r\n"));
    begin.recv().await.expect("the handler runs");
    let stopping = tokio::spawn(admin.stop(Duration::from_secs(20)));
    // New connections are refused once the servers are stopping.
    let deadline = Instant::now() + Duration::from_secs(20);
    while Client::connect(address).is_ok() {
        assert!(Instant::now() < deadline, "still accepting");
        tokio::task::yield_now().await;
    }
    finish.notify_one();
    stopping.await.expect("stopped");
    assert!(client.join().expect("a client").ends_with("done\n"));
}

#[tokio::test]
async fn stop_ends_at_its_deadline() {
    let (began, mut begin) = tokio::sync::mpsc::unbounded_channel();
    let (admin, address) = start(Router::new().get("/stuck", move |_| {
        began.send(()).expect("the test waits");
        std::future::pending()
    }));
    let client = thread::spawn(move || exchange(address, "GET /stuck HTTP/1.1\r\nhost: a\r\n\r\n"));
    begin.recv().await.expect("the handler runs");
    let before = Instant::now();
    admin.stop(Duration::from_millis(50)).await;
    assert!(before.elapsed() < Duration::from_secs(4), "{:?}", before.elapsed());
    assert_eq!(client.join().expect("a client"), "");
}

#[test]
fn connections_beyond_the_limit_are_closed() {
    let (_admin, address) = start(router());
    let held: Vec<Client> =
        (0..MAX_CONNECTIONS).map(|_| Client::connect(address).expect("a server")).collect();
    assert_eq!(exchange(address, "GET /text HTTP/1.1\r\nhost: a\r\n\r\n"), "");
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(20);
    while exchange(address, "GET /text HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").is_empty() {
        assert!(Instant::now() < deadline, "places are not given back");
    }
}
