//! What peers may not do: bounds against those who have shown no certificate, and those who have.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ambit_hbone::client;
use ambit_hbone::memory::Account;
use ambit_hbone::relay::{self, Traffic};
use ambit_hbone::request::ConnectRequest;
use ambit_hbone::server::{Clients, Incoming, Server, Settings};
use ambit_hbone::{Error, Http2, tls};
use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::ca::{Ca, Claims};
use crate::mesh::{CLIENT, DEADLINE, Inbound, Mesh, SERVER, identity, key, listen, pool, soon};

/// A client that speaks HTTP/2 as it likes.
async fn raw(ca: &Ca, address: SocketAddr) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    raw_with(ca, address, &Http2::default()).await
}

async fn raw_with(
    ca: &Ca,
    address: SocketAddr,
    http2: &Http2,
) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let config = tls::client_config(&ca.good(CLIENT), &[identity(SERVER)]);
    let socket = TcpStream::connect(address).await.expect("a connection");
    let stream = TlsConnector::from(config).connect(address.ip().into(), socket).await.expect("a session");
    let (sender, connection) = h2::client::Builder::new()
        .max_concurrent_reset_streams(100_000)
        .max_send_buffer_size(http2.send_buffer)
        .handshake(stream)
        .await
        .expect("HTTP/2");
    (sender, tokio::spawn(connection))
}

fn connect_to(authority: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(authority).body(()).expect("a request")
}

#[tokio::test]
async fn silent_clients_are_cut_off_and_do_not_block_others() {
    let ca = Ca::new();
    let settings =
        Settings { handshakes: 20, handshake_timeout: Duration::from_secs(5), ..Settings::default() };
    let mut inbound = Inbound::start(&ca.good(SERVER), settings).await;
    let began = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(inbound.address).await.expect("a connection"));
    }
    for _ in 0..180 {
        let end = soon(inbound.ended.recv()).await.expect("an end");
        assert!(matches!(end, Err(Error::TooManyHandshakes)), "{end:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "before their time was up");
    // Twenty are still there, and an honest client gets in.
    let (application, address) = listen().await;
    let (pool, _) = pool(&ca, Http2::default(), DEADLINE);
    let tunnel = soon(pool.open(&key(inbound.address), &ConnectRequest::to(address))).await;
    assert!(tunnel.is_ok(), "{tunnel:?}");
    soon(application.accept()).await.expect("the tunnel's connection");
    let ends = [soon(inbound.ended.recv()).await, soon(inbound.ended.recv()).await];
    assert!(matches!(ends[0], Some(Err(Error::TooManyHandshakes))), "the oldest made room: {:?}", ends[0]);
    assert!(matches!(ends[1], Some(Err(Error::HandshakeTimeout { .. }))), "{:?}", ends[1]);
    for socket in &mut silent {
        let read = soon(socket.read(&mut [0])).await;
        assert!(!matches!(read, Ok(count) if count > 0), "nothing was said to it");
    }
}

#[tokio::test]
async fn connections_per_address_are_bounded() {
    let ca = Ca::new();
    let settings = Settings { connections_from_one: 3, ..Settings::default() };
    let mut inbound = Inbound::start(&ca.good(SERVER), settings).await;
    let (_application, address) = listen().await;
    let connect = async || {
        let socket = TcpStream::connect(inbound.address).await.expect("a connection");
        let config = tls::client_config(&ca.good(CLIENT), &[identity(SERVER)]);
        let connection = client::connect(socket, config, &Http2::default(), &Account::default()).await?;
        let tunnel = connection.open(&ConnectRequest::to(address)).await?;
        Ok::<_, Error>((connection, tunnel))
    };
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(soon(connect()).await.expect("a tunnel"));
    }
    assert!(soon(connect()).await.is_err());
    let end = soon(inbound.ended.recv()).await.expect("an end");
    assert!(matches!(end, Err(Error::TooManyConnections { .. })), "{end:?}");
    let (connection, tunnel) = held.pop().expect("three");
    drop(tunnel);
    connection.close();
    soon(inbound.ended.recv()).await.expect("an end").expect("a clean one");
    soon(connect()).await.expect("there is room again");
}

/// An open tunnel outlives its client's certificate by `expired_for`; new ones are refused at once.
#[tokio::test]
async fn expired_client_certificate_gets_no_new_tunnels_and_keeps_open_ones_for_a_while() {
    for (name, expired_for) in [("an hour", Duration::from_hours(1)), ("a second", Duration::from_secs(1))] {
        let cut = expired_for < Duration::from_mins(1);
        println!("{name}");
        open_tunnel_after_expiry(expired_for, cut).await;
    }
}

async fn open_tunnel_after_expiry(expired_for: Duration, cut: bool) {
    let ca = Ca::new();
    // Certificates count in whole seconds.
    let expiry = SystemTime::now() + Duration::from_secs(3);
    let certificate = ca.issue(CLIENT, Claims { not_after: expiry, ..Claims::of(CLIENT) });
    let settings = Settings { expired_for, ..Settings::default() };
    let mut inbound = Inbound::start(&ca.good(SERVER), settings).await;
    let (application, address) = listen().await;
    let socket = TcpStream::connect(inbound.address).await.expect("a connection");
    let config = tls::client_config(&certificate, &[identity(SERVER)]);
    let connection =
        client::connect(socket, config, &Http2::default(), &Account::default()).await.expect("a connection");
    let tunnel = connection.open(&ConnectRequest::to(address)).await.expect("a tunnel");
    let (mut server, _) = application.accept().await.expect("the tunnel's connection");
    let (mut client, near) = crate::mesh::tcp_pair().await;
    let relay = tokio::spawn(async move { relay::tunnel(near, tunnel, &Traffic::default()).await });

    let refused = async {
        while let Ok(tunnel) = connection.open(&ConnectRequest::to(address)).await {
            drop(tunnel);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(refused).await;
    assert!(SystemTime::now() + Duration::from_secs(1) >= expiry, "not before its time");
    if !cut {
        client.write_all(b"still here").await.expect("an open tunnel");
        soon(server.read_exact(&mut [0; 10])).await.expect("an open tunnel");
        assert!(inbound.ended.try_recv().is_err(), "the connection goes on");
        relay.abort();
        return;
    }
    let end = soon(inbound.ended.recv()).await.expect("an end");
    assert!(matches!(end, Err(Error::CertificateExpired { .. })), "{end:?}");
    assert!(SystemTime::now() >= expiry, "not before its time");
    let outcome = soon(relay).await.expect("no panic");
    assert!(!outcome.end.is_clean(), "{outcome:?}");
}

#[tokio::test]
async fn expired_server_certificate_closes_to_new_tunnels() {
    let ca = Ca::new();
    let expiry = SystemTime::now() + Duration::from_secs(3);
    let certificate = ca.issue(SERVER, Claims { not_after: expiry, ..Claims::of(SERVER) });
    let inbound = Inbound::start(&certificate, Settings::default()).await;
    let socket = TcpStream::connect(inbound.address).await.expect("a connection");
    let config = tls::client_config(&ca.good(CLIENT), &[identity(SERVER)]);
    let connection =
        client::connect(socket, config, &Http2::default(), &Account::default()).await.expect("a connection");
    assert!(!connection.is_closed());
    crate::mesh::until("closed to new tunnels", || connection.is_closed()).await;
    assert!(SystemTime::now() + Duration::from_secs(1) >= expiry, "not before its time");
}

/// Serves one connection; counts the requests that are being handled, and handles none of them in time.
async fn count_requests(ca: &Ca) -> (SocketAddr, Arc<AtomicUsize>, JoinHandle<Result<(), Error>>) {
    let (listener, address) = listen().await;
    let config = tls::server_config(&ca.good(SERVER));
    let handled = Arc::new(AtomicUsize::new(0));
    let count = handled.clone();
    let serving = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("a connection");
        let handle = move |incoming: Incoming| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                std::future::pending::<()>().await;
                drop(incoming);
            }
        };
        Server::new(Settings::default())
            .serve(&Clients::default(), socket, config, std::future::pending(), handle)
            .await
    });
    (address, handled, serving)
}

#[tokio::test]
async fn rapid_resets_are_bounded() {
    let ca = Ca::new();
    let (address, handled, serving) = count_requests(&ca).await;
    let (mut sender, connection) = raw(&ca, address).await;
    let mut opened = 0;
    for _ in 0..10_000 {
        let Ok((_response, mut stream)) = sender.send_request(connect_to("127.0.0.1:80"), false) else {
            break;
        };
        opened += 1;
        tokio::task::yield_now().await;
        stream.send_reset(Reason::CANCEL);
    }
    tokio::time::timeout(Duration::from_secs(2), connection).await.ok();
    assert!(opened > 100, "{opened}");
    let most = Http2::default().streams as usize;
    assert!(handled.load(Ordering::SeqCst) <= most, "no more handlers than tunnels: {handled:?}");
    serving.abort();
}

#[tokio::test]
async fn streams_beyond_the_limit_are_not_handled() {
    let ca = Ca::new();
    let (address, handled, serving) = count_requests(&ca).await;
    let (mut sender, _connection) = raw(&ca, address).await;
    let mut streams = Vec::new();
    for _ in 0..300 {
        sender = sender.ready().await.expect("a connection");
        streams.push(sender.send_request(connect_to("127.0.0.1:80"), false).expect("a stream"));
        if streams.len() == Http2::default().streams as usize {
            break;
        }
    }
    crate::mesh::until("handled", || handled.load(Ordering::SeqCst) == 100).await;
    // One more waits at the client, which knows the limit; the server never sees it.
    let (response, _stream) = sender.send_request(connect_to("127.0.0.1:80"), false).expect("a stream");
    assert!(tokio::time::timeout(Duration::from_millis(200), response).await.is_err());
    assert_eq!(handled.load(Ordering::SeqCst), 100);
    serving.abort();
}

#[tokio::test]
async fn invalid_requests_are_answered_without_the_handler() {
    let ca = Ca::new();
    let (address, handled, serving) = count_requests(&ca).await;
    let (sender, _connection) = raw(&ca, address).await;
    let get = |uri: &str| Request::builder().uri(uri).body(()).expect("a request");
    let with = |name: &'static str, value: &str| {
        let mut request = connect_to("127.0.0.1:80");
        request.headers_mut().append(name, HeaderValue::from_str(value).expect("a value"));
        request
    };
    let rows = [
        ("GET", get("http://127.0.0.1/"), StatusCode::METHOD_NOT_ALLOWED),
        ("port 0", connect_to("127.0.0.1:0"), StatusCode::BAD_REQUEST),
        ("no port", connect_to("127.0.0.1"), StatusCode::BAD_REQUEST),
        ("half an address", connect_to("10.0.0:80"), StatusCode::BAD_REQUEST),
        (
            "20 KB of header",
            with("baggage", &"x".repeat(20_000)),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ),
    ];
    for (name, request, expected) in rows {
        let mut sender = sender.clone().ready().await.expect("a connection");
        let (response, _stream) = sender.send_request(request, false).expect("a stream");
        let response = soon(response).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(response.status(), expected, "{name}");
    }
    assert_eq!(handled.load(Ordering::SeqCst), 0);
    serving.abort();
}

#[tokio::test]
async fn unanswered_request_is_reset() {
    let ca = Ca::new();
    let (listener, address) = listen().await;
    let config = tls::server_config(&ca.good(SERVER));
    let serving = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("a connection");
        let handle = |incoming: Incoming| async move { drop(incoming) };
        Server::new(Settings::default())
            .serve(&Clients::default(), socket, config, std::future::pending(), handle)
            .await
    });
    let socket = TcpStream::connect(address).await.expect("a connection");
    let config = tls::client_config(&ca.good(CLIENT), &[identity(SERVER)]);
    let connection =
        client::connect(socket, config, &Http2::default(), &Account::default()).await.expect("a connection");
    let error = soon(connection.open(&ConnectRequest::to(address))).await.expect_err("no tunnel");
    assert!(matches!(&error, Error::Stream { source } if source.is_reset()), "{error:?}");
    assert_eq!(connection.tunnels(), 0, "its place is free again");
    serving.abort();
}

#[tokio::test]
async fn handler_is_told_that_the_client_gave_up() {
    let ca = Ca::new();
    let (listener, address) = listen().await;
    let config = tls::server_config(&ca.good(SERVER));
    let (told, mut learnt) = tokio::sync::mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("a connection");
        let handle = move |mut incoming: Incoming| {
            let told = told.clone();
            async move {
                let _ = told.send("asked");
                incoming.responder.abandoned().await;
                let _ = told.send("abandoned");
            }
        };
        Server::new(Settings::default())
            .serve(&Clients::default(), socket, config, std::future::pending(), handle)
            .await
    });
    let (pool, _) = pool(&ca, Http2::default(), DEADLINE);
    let (key, request) = (key(address), ConnectRequest::to(address));
    let open = tokio::spawn(async move { pool.open(&key, &request).await.map(drop) });
    assert_eq!(soon(learnt.recv()).await, Some("asked"));
    open.abort();
    assert_eq!(soon(learnt.recv()).await, Some("abandoned"));
    serving.abort();
}

/// What a proxy holds for a tunnel whose reader has stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_reader_holds_bounded_memory() {
    let mesh = Mesh::start().await;
    let (listener, address) = listen().await;
    let tunnel = soon(mesh.open(address)).await.expect("a tunnel");
    let (_server, _) = listener.accept().await.expect("the tunnel's connection");
    let (client, near) = crate::mesh::tcp_pair().await;
    let traffic = Arc::new(Traffic::default());
    let counted = traffic.clone();
    let relay = tokio::spawn(async move { relay::tunnel(near, tunnel, &counted).await });
    let piece = vec![0; 64 << 10];
    while tokio::time::timeout(Duration::from_millis(500), client.writable()).await.is_ok() {
        let _full = client.try_write(&piece);
    }
    // What the server's socket and the application's have taken is the kernel's: at most 6 MiB of writing and
    // 6 of reading by default. What the proxies hold is a window and a send buffer.
    let held = traffic.sent();
    let bound = (12 << 20) + u64::from(Http2::default().stream_window) + Http2::default().send_buffer as u64;
    assert!(held <= bound + (1 << 20), "{held} bytes were taken from the writer");
    relay.abort();
}

/// Waits for room in a stream; `false` when there is none for a while.
async fn room(stream: &mut h2::SendStream<Bytes>, size: usize) -> bool {
    stream.reserve_capacity(size);
    let enough = async {
        while stream.capacity() < size {
            let more = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
            more.expect("an open stream").expect("capacity");
        }
    };
    tokio::time::timeout(Duration::from_millis(300), enough).await.is_ok()
}

/// HTTP/2 ends a connection on which too many small frames wait; those of a tunnel whose reader has stopped
/// may be many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_frames_to_a_stalled_reader_keep_the_connection() {
    let ca = Ca::new();
    let inbound = Inbound::start(&ca.good(SERVER), Settings::default()).await;
    let (application, address) = listen().await;
    let http2 = Http2 { send_buffer: 8 << 20, ..Http2::default() };
    let (mut sender, _connection) = raw_with(&ca, inbound.address, &http2).await;
    let (response, mut stream) =
        sender.send_request(connect_to(&address.to_string()), false).expect("a stream");
    let (mut stopped, _) = soon(application.accept()).await.expect("the tunnel's connection");
    assert_eq!(soon(response).await.expect("an answer").status(), StatusCode::OK);
    // Until the socket takes nothing more; then there is still room in the stream's window.
    let mut sent = 0;
    while room(&mut stream, 600 << 10).await {
        stream.send_data(Bytes::from(vec![0; 64 << 10]), false).expect("a peer");
        sent += 64 << 10;
    }
    let small = stream.capacity();
    assert!(small > 440_000, "room for many small frames: {small}");
    for _ in 0..22 {
        for _ in 0..20_000 {
            stream.send_data(Bytes::from_static(b"."), false).expect("a peer");
            sent += 1;
        }
        // As an application would, which writes each of them by a call of its own.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stream.send_data(Bytes::new(), true).expect("a peer");
    // The connection lives, and so do its other tunnels.
    let (response, _other) = sender.send_request(connect_to(&address.to_string()), false).expect("a stream");
    assert_eq!(soon(response).await.expect("an answer").status(), StatusCode::OK);
    let mut got = Vec::new();
    soon(stopped.read_to_end(&mut got)).await.expect("everything");
    assert_eq!(got.len(), sent);
}
