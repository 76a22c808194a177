//! The servers themselves: HTTP/1.1, bounded in header size, time, body and connections, on one thread.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};

use super::Router;
use crate::Error;
use crate::drain::Drain;

/// Connections one server has at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 64;
/// The whole head of a request.
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// For a request's head, and between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a connection as a whole: a reader that stalls gives its place back.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(1);
/// For the answer under way when a connection's time is up.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// Before accepting again when it failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One server: where it listens and what it answers.
#[derive(Debug)]
pub struct Server {
    /// What errors and logs call it.
    pub name: &'static str,
    pub address: SocketAddr,
    pub router: Router,
}

/// The running servers. They end with [`Admin::stop`], or abruptly when dropped.
#[derive(Debug)]
pub struct Admin {
    addresses: Vec<SocketAddr>,
    /// Carries the deadline; dropped unsent it means at once.
    stop: oneshot::Sender<Duration>,
    stopped: oneshot::Receiver<()>,
}

impl Admin {
    /// Binds every address (the error names the one that failed) and serves from a thread of its own.
    pub fn start(servers: Vec<Server>) -> Result<Self, Error> {
        let bound = servers.into_iter().map(Bound::new).collect::<Result<Vec<_>, _>>()?;
        let addresses = bound.iter().map(|server| server.address).collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::AdminThread { source })?;
        let (stop, stop_asked) = oneshot::channel();
        let (stopped_say, stopped) = oneshot::channel();
        thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                runtime.block_on(run(bound, stop_asked));
                // Nobody waits when the handle was dropped.
                let _ = stopped_say.send(());
            })
            .map_err(|source| Error::AdminThread { source })?;
        Ok(Self { addresses, stop, stopped })
    }

    /// Where the servers listen, in the order given.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops accepting, lets running answers finish within the deadline, and ends the thread. The last thing
    /// a daemon does: metrics and readiness are asked for while it drains.
    pub async fn stop(self, deadline: Duration) {
        // An error of either means that the thread has already ended.
        if self.stop.send(deadline).is_ok() {
            let _ = self.stopped.await;
        }
    }
}

/// A server whose address is taken.
struct Bound {
    name: &'static str,
    address: SocketAddr,
    listener: TcpListener,
    router: Router,
}

impl Bound {
    fn new(server: Server) -> Result<Self, Error> {
        let Server { name, address, router } = server;
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        };
        match bind() {
            Ok((address, listener)) => Ok(Self { name, address, listener, router }),
            Err(source) => Err(Error::Bind { server: name, address, source }),
        }
    }
}

async fn run(servers: Vec<Bound>, stop: oneshot::Receiver<Duration>) {
    let drain = Drain::new();
    for server in servers {
        match tokio::net::TcpListener::from_std(server.listener) {
            Ok(listener) => drop(tokio::spawn(accept(listener, Arc::new(server.router), drain.clone()))),
            Err(error) => tracing::error!(server = server.name, %error, "not served"),
        }
    }
    if let Ok(deadline) = stop.await {
        // Connections left at the deadline end with the runtime.
        let _ = drain.finish(deadline).await;
    }
}

async fn accept(listener: tokio::net::TcpListener, router: Arc<Router>, drain: Drain) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.started() => return,
        };
        let Ok((stream, _client)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (router, connection_drain) = (router.clone(), drain.clone());
        drain.spawn(async move {
            serve(stream, router, &connection_drain).await;
            drop(place);
        });
    }
}

/// Answers one connection's requests until it ends, its time is up, or the servers stop.
async fn serve(stream: TcpStream, router: Arc<Router>, drain: &Drain) {
    let answer = service_fn(move |request: http::Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<http::Response<Full<Bytes>>, Infallible>(router.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // A client that misbehaves or leaves is no news.
        _ended = connection.as_mut() => return,
        () = tokio::time::sleep(CONNECTION_LIFETIME) => {}
        () = drain.started() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ended_or_cut = tokio::time::timeout(LAST_ANSWER, connection).await;
}

#[cfg(test)]
mod tests {
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
            ("browser", format!("POST /echo HTTP/1.1\r\norigin: http://x\r\n{close}\r\n"), "403", "browser"),
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
    fn a_taken_address_is_named() {
        let (_admin, address) = start(Router::new());
        let error = Admin::start(vec![Server { name: "metrics", address, router: Router::new() }]);
        let text = error.expect_err("the port is taken").to_string();
        assert_eq!(text, format!("metrics server: listening on {address}"));
    }

    #[tokio::test]
    async fn stopping_lets_the_running_answer_finish() {
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
    async fn stopping_does_not_wait_beyond_its_deadline() {
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
}
