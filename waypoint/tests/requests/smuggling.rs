//! Requests of HTTP/1 that two programs could read in two ways: each is refused, and no server sees it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_core::model::AppProtocol;
use http::Response;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::lab::{App, DEADLINE, Lab, echo, full, handler, until};

/// What would be another request if the one ahead of it were shorter than it seems.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: cart.shop\r\n\r\n";

/// What the waypoint answers to these bytes until it closes.
pub(crate) async fn answer(lab: &Lab, to: SocketAddr, bytes: &[u8]) -> String {
    let mut tunnel = lab.tunnel(to).await.expect("a tunnel");
    tunnel.write_all(bytes).await.expect("written");
    let mut answer = Vec::new();
    // A reset is an answer too.
    let _ended = tokio::time::timeout(DEADLINE, tunnel.read_to_end(&mut answer)).await.expect("it ends");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends bytes that must be refused before a server is even connected to.
async fn refused(lab: &Lab, to: SocketAddr, app: &App, name: &str, bytes: &str) {
    let told = answer(lab, to, bytes.as_bytes());
    let told = tokio::time::timeout(DEADLINE / 2, told).await.expect(name);
    assert!(told.starts_with("HTTP/1.1 400 "), "{name}: {told}");
    assert_eq!(told.matches("HTTP/1.1 ").count(), 1, "{name}: nothing after it is looked at: {told}");
    assert_eq!((app.requests(), app.connections()), (0, 0), "{name}");
}

async fn cart() -> (Arc<Lab>, SocketAddr, App) {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let app = lab.app("cart-1", 11, "cart", echo("cart-1")).await;
    (lab, cart, app)
}

#[tokio::test]
async fn heads_with_two_meanings_are_refused() {
    let (lab, cart, app) = cart().await;
    for (name, head) in [
        ("two lengths", "Host: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n"),
        ("two equal lengths", "Host: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n"),
        ("two lengths in one line", "Host: a\r\nContent-Length: 5, 6\r\n"),
        ("two equal lengths in one line", "Host: a\r\nContent-Length: 5, 5\r\n"),
        ("an octal length", "Host: a\r\nContent-Length: 010\r\n"),
        ("a hexadecimal length", "Host: a\r\nContent-Length: 0x5\r\n"),
        ("a signed length", "Host: a\r\nContent-Length: +5\r\n"),
        ("a negative length", "Host: a\r\nContent-Length: -1\r\n"),
        ("a length in two words", "Host: a\r\nContent-Length: 4 2\r\n"),
        ("a length of no digits", "Host: a\r\nContent-Length: \r\n"),
        ("a length that overflows", "Host: a\r\nContent-Length: 18446744073709551621\r\n"),
        ("a quoted length", "Host: a\r\nContent-Length: \"5\"\r\n"),
        ("a length, and chunks", "Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        ("chunks, and a length", "Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        ("chunks, and a length of nothing", "Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
        ("two encodings", "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("two different encodings", "Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n"),
        ("two encodings in one line", "Host: a\r\nTransfer-Encoding: chunked, chunked\r\n"),
        ("chunked twice over", "Host: a\r\nTransfer-Encoding: gzip, chunked\r\n"),
        ("chunked, and then something else", "Host: a\r\nTransfer-Encoding: chunked, identity\r\n"),
        ("an encoding that is not chunked", "Host: a\r\nTransfer-Encoding: xchunked\r\n"),
        ("no encoding by name", "Host: a\r\nTransfer-Encoding: identity\r\n"),
        ("an empty encoding", "Host: a\r\nTransfer-Encoding:\r\n"),
        ("an encoding with a parameter", "Host: a\r\nTransfer-Encoding: chunked;q=1\r\n"),
        ("an encoding with a vertical tab", "Host: a\r\nTransfer-Encoding: \x0bchunked\r\n"),
        ("a quoted encoding", "Host: a\r\nTransfer-Encoding: \"chunked\"\r\n"),
        ("a folded header", "Host: a\r\nX-One: 1\r\n two\r\n"),
        ("a header folded by a tab", "Host: a\r\nX-One: 1\r\n\ttwo\r\n"),
        ("a folded length", "Host: a\r\nContent-Length:\r\n 5\r\n"),
        ("a folded encoding", "Host: a\r\nTransfer-Encoding:\r\n chunked\r\n"),
        ("a fold of the request line", " Host: a\r\nHost: a\r\n"),
        ("a space before the colon", "Host: a\r\nTransfer-Encoding : chunked\r\n"),
        ("a tab before the colon", "Host: a\r\nContent-Length\t: 5\r\n"),
        ("a line without a colon", "Host: a\r\nTransfer-Encoding\r\n"),
        ("a header without a name", "Host: a\r\n: chunked\r\n"),
        ("a name with a control character", "Host: a\r\nX\x0bOne: 1\r\n"),
        ("a name that is not ASCII", "Host: a\r\nTransfer-Encod\u{131}ng: chunked\r\n"),
        ("a bare carriage return in a value", "Host: a\r\nX-One: 1\rX-Two: 2\r\n"),
        ("a bare carriage return in a name", "Host: a\r\nX-\rOne: 1\r\n"),
        ("a bare line feed between headers", "Host: a\r\nX-One: 1\nContent-Length: 5\r\n"),
        ("a bare line feed after the last", "Host: a\r\nX-One: 1\n"),
        ("a bare line feed as the empty line", "Host: a\r\n\n"),
        ("NUL in a value", "Host: a\r\nX-One: 1\0b\r\n"),
        ("NUL in a name", "Host: a\r\nContent-Length\0: 5\r\n"),
        ("two hosts", "Host: a\r\nHost: b\r\n"),
        ("two equal hosts", "Host: a\r\nHost: a\r\n"),
        ("no host", "X-One: 1\r\n"),
        ("a host with a user", "Host: a@b\r\n"),
        ("a host with a path", "Host: a/b\r\n"),
        ("bytes of another protocol ahead of its turn", "Host: a\r\nConnection: upgrade\r\nUpgrade: x\r\n"),
    ] {
        let bytes = format!("POST /seen HTTP/1.1\r\n{head}\r\n{HIDDEN}");
        refused(&lab, cart, &app, name, &bytes).await;
    }
}

#[tokio::test]
async fn request_lines_with_two_meanings_are_refused() {
    let (lab, cart, app) = cart().await;
    for (name, line) in [
        ("a bare line feed", "GET /seen HTTP/1.1\n"),
        ("a bare carriage return", "GET /seen HTTP/1.1\r"),
        ("a space ahead", " GET /seen HTTP/1.1\r\n"),
        ("two spaces", "GET  /seen HTTP/1.1\r\n"),
        ("a space in the path", "GET /seen /hidden HTTP/1.1\r\n"),
        ("a tab", "GET\t/seen HTTP/1.1\r\n"),
        ("NUL in the path", "GET /se\0en HTTP/1.1\r\n"),
        ("a fragment", "GET /seen#/hidden HTTP/1.1\r\n"),
        ("no slash", "GET seen HTTP/1.1\r\n"),
        ("a path that is no path", "GET * HTTP/1.1\r\n"),
        ("no version", "GET /seen\r\n"),
        ("another version", "GET /seen HTTP/1.2\r\n"),
        ("a version in small letters", "GET /seen http/1.1\r\n"),
        ("a method that is no word", "G(T /seen HTTP/1.1\r\n"),
        ("chunks in HTTP/1.0", "POST /seen HTTP/1.0\r\nTransfer-Encoding: chunked\r\n"),
    ] {
        refused(&lab, cart, &app, name, &format!("{line}Host: a\r\n\r\n{HIDDEN}")).await;
    }
}

/// Chunks with two meanings.
const CHUNKS: [(&str, &str); 20] = [
    ("a bare line feed after the size", "5\nhello\r\n0\r\n\r\n"),
    ("a bare carriage return after the size", "5\rhello\r\n0\r\n\r\n"),
    ("a bare line feed after the data", "5\r\nhello\n0\r\n\r\n"),
    ("a bare line feed in an extension", "5;x\nhello\r\n0\r\n\r\n"),
    ("a control character in an extension", "5;\x01\r\nhello\r\n0\r\n\r\n"),
    ("a prefix of hexadecimal", "0x5\r\nhello\r\n0\r\n\r\n"),
    ("a sign", "+5\r\nhello\r\n0\r\n\r\n"),
    ("a negative size", "-5\r\nhello\r\n0\r\n\r\n"),
    ("a space before the size", " 5\r\nhello\r\n0\r\n\r\n"),
    ("a space after the size", "5 \r\nhello\r\n0\r\n\r\n"),
    ("digits with a mark between", "0_5\r\nhello\r\n0\r\n\r\n"),
    ("a size that overflows", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
    ("no size", "\r\nhello\r\n0\r\n\r\n"),
    ("an extension without a size", ";x\r\nhello\r\n0\r\n\r\n"),
    ("more data than the size", "5\r\nhello!\r\n0\r\n\r\n"),
    ("less data than the size", "6\r\nhello\r\n0\r\n\r\n"),
    ("a bare line feed at the end", "5\r\nhello\r\n0\r\n\n"),
    ("a bare line feed in the trailers", "5\r\nhello\r\n0\r\nx: 1\ny: 2\r\n\r\n"),
    ("a length in the trailers", "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"),
    ("an encoding in the trailers", "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
];

const CHUNKED: &str = "POST /seen HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[tokio::test]
async fn chunks_with_two_meanings_are_refused_with_their_head() {
    let (lab, cart, app) = cart().await;
    for (name, chunks) in CHUNKS {
        refused(&lab, cart, &app, name, &format!("{CHUNKED}{chunks}{HIDDEN}")).await;
    }
}

/// The head has been passed on by then: the server sees a request that breaks off.
#[tokio::test]
async fn chunks_with_two_meanings_that_come_later_make_no_whole_request() {
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http11);
    let (broken, whole) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = [broken.clone(), whole.clone()];
    let app = handler(move |request: http::Request<hyper::body::Incoming>| {
        let counts = counts.clone();
        async move {
            let is_whole = request.into_body().collect().await.is_ok();
            counts[usize::from(is_whole)].fetch_add(1, Ordering::SeqCst);
            Response::new(full("whole"))
        }
    });
    let app = lab.app("cart-1", 11, "cart", app).await;
    for (number, (name, chunks)) in CHUNKS.into_iter().enumerate() {
        let mut tunnel = lab.tunnel(cart).await.expect("a tunnel");
        tunnel.write_all(CHUNKED.as_bytes()).await.expect("written");
        until(name, || app.requests() == number + 1).await;
        tunnel.write_all(format!("{chunks}{HIDDEN}").as_bytes()).await.expect("written");
        until(name, || broken.load(Ordering::SeqCst) == number + 1).await;
        let mut answer = Vec::new();
        let _end = tokio::time::timeout(DEADLINE, tunnel.read_to_end(&mut answer)).await.expect("it ends");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), usize::from(!answer.is_empty()), "{name}: {answer}");
    }
    assert_eq!((whole.load(Ordering::SeqCst), app.requests()), (0, CHUNKS.len()));
}

#[tokio::test]
async fn requests_ahead_of_a_refused_one_are_answered() {
    let (lab, cart, app) = cart().await;
    let bytes = format!(
        "GET /one HTTP/1.1\r\nHost: a\r\n\r\nPOST /two HTTP/1.1\r\nHost: a\r\nContent-Length: \
         5\r\n\r\nhelloPOST /three HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \
         chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /four HTTP/1.1\nHost: a\r\n\r\n{HIDDEN}"
    );
    let told = answer(&lab, cart, bytes.as_bytes()).await;
    let statuses: Vec<&str> =
        told.match_indices("HTTP/1.1 ").filter_map(|(at, _)| told.get(at + 9..at + 12)).collect();
    // The echo of each request names its version too.
    let statuses: Vec<&str> = statuses.into_iter().filter(|it| it.parse::<u16>().is_ok()).collect();
    assert_eq!(statuses, ["200", "200", "200", "400"], "{told}");
    assert_eq!(app.requests(), 3);
}
