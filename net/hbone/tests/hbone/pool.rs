//! Connections that tunnels share: how many there are, when they go, and what a tunnel does when one does.

use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ambit_hbone::client::Connection;
use ambit_hbone::pool::{Dial, Key, Pool, PoolError};
use ambit_hbone::relay::{self, Traffic};
use ambit_hbone::request::ConnectRequest;
use ambit_hbone::server::Settings;
use ambit_hbone::{Error, Http2, tls};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::join_all;
use h2::Reason;
use http::{Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::ca::Ca;
use crate::mesh::{
    CLIENT, DEADLINE, Inbound, Mesh, SERVER, identity, key, listen, pool, soon, tcp_pair, uid, until,
};

/// An application that accepts and answers every byte it gets.
async fn echo() -> (SocketAddr, JoinHandle<()>) {
    let (listener, address) = listen().await;
    let task = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            tokio::spawn(async move {
                let (mut reader, mut writer) = socket.split();
                let _gone = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    (address, task)
}

/// Whether a byte comes back.
async fn answers(socket: &mut TcpStream) -> bool {
    let mut byte = [0];
    soon(async {
        socket.write_all(b"?").await.is_ok() && socket.read_exact(&mut byte).await.is_ok() && byte == *b"?"
    })
    .await
}

/// A client's socket with the tunnel behind it.
async fn client(mesh: &Mesh, to: SocketAddr) -> TcpStream {
    let tunnel = soon(mesh.open(to)).await.expect("a tunnel");
    let (client, near) = tcp_pair().await;
    tokio::spawn(async move { relay::tunnel(near, tunnel, &Traffic::default()).await });
    client
}

fn dials(count: &AtomicUsize) -> usize {
    count.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_opens_share_one_dial() {
    let mesh = Mesh::start().await;
    let (address, _echo) = echo().await;
    let tunnels = join_all((0..50).map(|_| soon(mesh.open(address)))).await;
    assert!(tunnels.iter().all(Result::is_ok));
    assert_eq!((dials(&mesh.dials), mesh.pool.connections()), (1, 1));
}

/// Every new connection serves those that wait longest: it does not wake all others for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn burst_wakes_each_caller_a_few_times() {
    const CALLERS: usize = 600;
    const PLACES: u32 = 6;
    let http2 = Http2 { streams: PLACES, ..Http2::default() };
    let mesh = Mesh::with_both(http2.clone(), http2).await;
    let (address, _echo) = echo().await;
    let polls = AtomicUsize::new(0);
    let opening = (0..CALLERS).map(|_| {
        let (mut opening, polls) = (Box::pin(soon(mesh.open(address))), &polls);
        poll_fn(move |context| {
            polls.fetch_add(1, Ordering::Relaxed);
            opening.as_mut().poll(context)
        })
    });
    let tunnels = join_all(opening).await;
    assert!(tunnels.iter().all(Result::is_ok), "{:?}", tunnels.iter().find(|tunnel| tunnel.is_err()));
    let most = CALLERS / PLACES as usize + 4;
    assert!(mesh.pool.connections() <= most, "{} connections", mesh.pool.connections());
    let polls = polls.into_inner();
    assert!(polls <= 8 * CALLERS, "{polls} polls of {CALLERS} callers");
}

#[tokio::test]
async fn full_connection_opens_another() {
    let rows = [("its own limit", 3, 100), ("the peer's limit", 100, 3)];
    for (name, own, peers) in rows {
        let http2 = |streams| Http2 { streams, ..Http2::default() };
        let mesh = Mesh::with_both(http2(own), http2(peers)).await;
        let (address, _echo) = echo().await;
        // The peer's limit is known once it has said something.
        drop(soon(mesh.open(address)).await.expect("a tunnel"));
        let mut clients = Vec::new();
        for _ in 0..7 {
            clients.push(client(&mesh, address).await);
        }
        assert_eq!(mesh.pool.connections(), 3, "{name}");
        for client in &mut clients {
            assert!(answers(client).await, "{name}");
        }
        // Places that were given back are taken again.
        drop(clients);
        let mut again = client(&mesh, address).await;
        assert!(answers(&mut again).await, "{name}");
        assert!(mesh.pool.connections() <= 4, "{name}");
    }
}

#[tokio::test]
async fn connections_are_not_shared_across_keys() {
    let mesh = Mesh::start().await;
    let (address, _echo) = echo().await;
    let good = mesh.key.clone();
    let rows = [
        ("another workload", Key { source: uid("other"), ..good.clone() }),
        ("more acceptable peers", Key { peers: [identity(SERVER), identity(CLIENT)].into(), ..good.clone() }),
    ];
    let _tunnel = soon(mesh.open(address)).await.expect("a tunnel");
    for (count, (name, key)) in rows.iter().enumerate() {
        let tunnel = soon(mesh.pool.open(key, &ConnectRequest::to(address))).await;
        assert!(tunnel.is_ok(), "{name}: {tunnel:?}");
        assert_eq!(mesh.pool.connections(), count + 2, "{name}");
    }
}

#[tokio::test]
async fn failed_dial_fails_all_waiting_callers_and_the_next_retries() {
    let ca = Ca::new();
    let (listener, address) = listen().await;
    drop(listener);
    let (pool, count) = pool(&ca, Http2::default(), DEADLINE);
    let (key, request) = (key(address), ConnectRequest::to(address));
    let errors = join_all((0..10).map(|_| pool.open(&key, &request))).await;
    assert!(errors.iter().all(|error| matches!(error, Err(PoolError::Dial { .. }))), "{errors:?}");
    assert_eq!(dials(&count), 1);
    assert!(matches!(pool.open(&key, &request).await, Err(PoolError::Dial { .. })));
    assert_eq!(dials(&count), 2);
}

/// Ends as told.
struct Strange(fn() -> bool);

#[derive(Debug, thiserror::Error)]
#[error("never said")]
struct Never;

impl Dial for Strange {
    type Error = Never;

    async fn dial(&self, _key: &Key) -> Result<Connection, Never> {
        assert!((self.0)(), "a dial that panics");
        std::future::pending().await
    }
}

#[tokio::test]
async fn hanging_or_panicking_dials_are_aborted() {
    let address = "127.0.0.1:9".parse().expect("an address");
    let (key, request) = (key(address), ConnectRequest::to(address));
    let hanging = Pool::new(Strange(|| true), Duration::from_millis(50));
    let error = soon(hanging.open(&key, &request)).await;
    assert!(matches!(error, Err(PoolError::DialTimeout { .. })), "{error:?}");
    let panicking = Pool::new(Strange(|| false), DEADLINE);
    for _ in 0..2 {
        let error = soon(panicking.open(&key, &request)).await;
        assert!(matches!(error, Err(PoolError::DialLost { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn dial_continues_when_its_caller_is_dropped() {
    let mesh = Mesh::start().await;
    let (address, _echo) = echo().await;
    // One look, then gone: a timer, however short, may come after a tunnel that is quick.
    assert!(mesh.open(address).now_or_never().is_none(), "it takes longer");
    until("the dial goes on", || mesh.pool.connections() == 1).await;
    soon(mesh.open(address)).await.expect("a tunnel");
    assert_eq!(dials(&mesh.dials), 1);
}

#[tokio::test]
async fn refused_tunnel_is_reported_and_not_retried() {
    let mesh = Mesh::start().await;
    let (listener, closed) = listen().await;
    drop(listener);
    let denied = "127.0.0.1:1".parse().expect("an address");
    for (to, expected) in [(denied, StatusCode::UNAUTHORIZED), (closed, StatusCode::SERVICE_UNAVAILABLE)] {
        for _ in 0..3 {
            match soon(mesh.open(to)).await {
                Err(PoolError::Open { source: Error::Refused { status }, .. }) => {
                    assert_eq!(status, expected);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!((dials(&mesh.dials), mesh.pool.connections()), (1, 1));
}

#[tokio::test]
async fn draining_peer_keeps_open_tunnels_and_gets_no_new_ones() {
    let mut mesh = Mesh::start().await;
    let (address, _echo) = echo().await;
    let mut old = client(&mesh, address).await;
    assert!(answers(&mut old).await);
    mesh.inbound.drain();
    // The listener still accepts in this test: the new tunnel comes over a new connection, which drains as
    // well.
    let asked = tokio::time::timeout(DEADLINE, async {
        while mesh.inbound.connections.load(Ordering::SeqCst) == 1 {
            drop(mesh.open(address).await);
        }
    });
    asked.await.expect("a second connection");
    assert!(answers(&mut old).await, "the old tunnel lives");
    drop(old);
    let end = soon(mesh.inbound.ended.recv()).await.expect("an end");
    assert!(end.is_ok(), "{end:?}");
}

#[tokio::test]
async fn unprocessed_request_is_retried_on_another_connection() {
    // What the peer does with the first request it gets; it serves every later connection.
    type Act = fn(
        &mut h2::server::Connection<tokio_rustls::server::TlsStream<TcpStream>, Bytes>,
        h2::server::SendResponse<Bytes>,
    );
    let rows: &[(&str, Act, bool)] = &[
        ("REFUSED_STREAM", |_, mut response| response.send_reset(Reason::REFUSED_STREAM), true),
        ("INTERNAL_ERROR", |_, mut response| response.send_reset(Reason::INTERNAL_ERROR), false),
        ("dead connection", |connection, _| connection.abrupt_shutdown(Reason::NO_ERROR), true),
    ];
    for (name, act, again) in rows {
        let ca = Ca::new();
        let (listener, address) = listen().await;
        let config = tls::server_config(&ca.good(SERVER));
        let asked = Arc::new(AtomicUsize::new(0));
        let serving = tokio::spawn(serve_after_first(listener, config, *act, asked.clone()));
        let (pool, count) = pool(&ca, Http2::default(), DEADLINE);
        let (key, request) = (key(address), ConnectRequest::to(address));
        // So that the connection is a kept one.
        soon(pool.open(&key, &request)).await.expect("the first tunnel");
        let second = soon(pool.open(&key, &request)).await;
        assert_eq!(second.is_ok(), *again, "{name}: {second:?}");
        assert_eq!(dials(&count), if *again { 2 } else { 1 }, "{name}");
        serving.abort();
    }
}

/// Accepts every tunnel but the second of the first connection.
async fn serve_after_first<A>(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    act: A,
    asked: Arc<AtomicUsize>,
) where
    A: Fn(
            &mut h2::server::Connection<tokio_rustls::server::TlsStream<TcpStream>, Bytes>,
            h2::server::SendResponse<Bytes>,
        ) + Copy
        + Send
        + 'static,
{
    loop {
        let (socket, _) = listener.accept().await.expect("a connection");
        let (acceptor, asked) = (TlsAcceptor::from(config.clone()), asked.clone());
        tokio::spawn(async move {
            let stream = acceptor.accept(socket).await.expect("a session");
            let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
            let mut open = Vec::new();
            while let Some(Ok((request, mut response))) = connection.accept().await {
                if asked.fetch_add(1, Ordering::SeqCst) == 1 {
                    act(&mut connection, response);
                } else {
                    let sender = response.send_response(Response::new(()), false).expect("an answer");
                    open.push((request, sender));
                }
            }
        });
    }
}

#[tokio::test]
async fn dead_peer_is_redialled() {
    let ca = Ca::new();
    let first = Inbound::start(&ca.good(SERVER), Settings::default()).await;
    let (address, _echo) = echo().await;
    let (pool, _) = pool(&ca, Http2::default(), DEADLINE);
    // A relay between them that can be cut: what is behind it is the peer.
    let (listener, front) = listen().await;
    let back = Arc::new(parking_lot::Mutex::new(first.address));
    let to = back.clone();
    let relays = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            let address = *to.lock();
            let peer = TcpStream::connect(address).await;
            if let Ok(peer) = peer {
                tokio::spawn(async move { relay::tcp(socket, peer, &Traffic::default()).await });
            }
        }
    });
    let (key, request) = (key(front), ConnectRequest::to(address));
    let tunnel = soon(pool.open(&key, &request)).await.expect("a tunnel");
    let second = Inbound::start(&ca.good(SERVER), Settings::default()).await;
    *back.lock() = second.address;
    first.kill();
    let again = soon(pool.open(&key, &request)).await;
    assert!(again.is_ok(), "{again:?}");
    assert_eq!(pool.connections(), 1, "the dead one is forgotten");
    drop(tunnel);
    relays.abort();
}

#[tokio::test]
async fn silent_peer_fails_by_ping_timeout() {
    let ca = Ca::new();
    let (listener, address) = listen().await;
    let acceptor = TlsAcceptor::from(tls::server_config(&ca.good(SERVER)));
    let (opened, tunnel_is_open) = tokio::sync::oneshot::channel::<()>();
    // Answers one request until the client has its tunnel, then holds the connection and never looks at it
    // again.
    let serving = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("a connection");
        let stream = acceptor.accept(socket).await.expect("a session");
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        let (request, mut response) = connection.accept().await.expect("a request").expect("a good one");
        let sender = response.send_response(Response::new(()), false).expect("an answer");
        tokio::select! {
            _ = connection.accept() => {}
            _ = tunnel_is_open => {}
        }
        std::future::pending::<()>().await;
        drop((connection, request, sender));
    });
    let http2 = Http2 {
        ping_interval: Duration::from_millis(100),
        ping_timeout: Duration::from_millis(500),
        ..Http2::default()
    };
    let (pool, _) = pool(&ca, http2, DEADLINE);
    let tunnel = soon(pool.open(&key(address), &ConnectRequest::to(address))).await.expect("a tunnel");
    opened.send(()).expect("the server answers until now");
    let (mut client, near) = tcp_pair().await;
    let relay = tokio::spawn(async move { relay::tunnel(near, tunnel, &Traffic::default()).await });
    let error = soon(client.read(&mut [0])).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let end = soon(relay).await.expect("a relay").end;
    assert!(matches!(end, relay::End::Tunnel(_)), "{end:?}");
    assert_eq!(pool.connections(), 0);
    serving.abort();
}

#[tokio::test]
async fn idle_connection_is_closed() {
    let http2 = Http2 { idle_timeout: Duration::from_millis(100), ..Http2::default() };
    let mut mesh = Mesh::with_both(http2, Http2::default()).await;
    let (address, _echo) = echo().await;
    let mut client = client(&mesh, address).await;
    // Not while a tunnel is open: another connection, made later, is closed before.
    let other = Key { source: uid("other"), ..mesh.key.clone() };
    drop(soon(mesh.pool.open(&other, &ConnectRequest::to(address))).await.expect("a tunnel"));
    assert_eq!(mesh.pool.connections(), 2);
    until("the other is closed", || mesh.pool.connections() == 1).await;
    soon(mesh.inbound.ended.recv()).await.expect("an end").expect("a clean one");
    assert!(answers(&mut client).await);
    assert_eq!(mesh.pool.connections(), 1);
    drop(client);
    until("closed", || mesh.pool.connections() == 0).await;
    let end = soon(mesh.inbound.ended.recv()).await.expect("an end");
    assert!(end.is_ok(), "{end:?}");
    soon(mesh.open(address)).await.expect("a tunnel over a new connection");
    assert_eq!(dials(&mesh.dials), 3);
}

#[tokio::test]
async fn retired_connections_keep_open_tunnels_and_get_no_new_ones() {
    type Retire = fn(&Mesh);
    let rows: &[(&str, Retire, bool)] = &[
        ("the source", |mesh| mesh.pool.retire_source(&uid("web")), true),
        ("another source", |mesh| mesh.pool.retire_source(&uid("other")), false),
        ("the identity", |mesh| mesh.pool.retire_identity(&identity(CLIENT)), true),
        ("another identity", |mesh| mesh.pool.retire_identity(&identity(SERVER)), false),
        ("all", |mesh| mesh.pool.retire_all(), true),
    ];
    for (name, retire, concerned) in rows {
        let mut mesh = Mesh::start().await;
        let (address, _echo) = echo().await;
        let mut old = client(&mesh, address).await;
        retire(&mesh);
        assert_eq!(mesh.pool.connections(), usize::from(!concerned), "{name}");
        assert!(answers(&mut old).await, "{name}");
        let mut new = client(&mesh, address).await;
        assert!(answers(&mut new).await, "{name}");
        assert_eq!(dials(&mesh.dials), if *concerned { 2 } else { 1 }, "{name}");
        drop(old);
        if *concerned {
            let end = soon(mesh.inbound.ended.recv()).await.expect("an end");
            assert!(end.is_ok(), "{name}: {end:?}");
        }
        assert!(answers(&mut new).await, "{name}");
    }
}

#[tokio::test]
async fn peer_that_always_sends_goaway_is_given_up() {
    let ca = Ca::new();
    let (listener, address) = listen().await;
    let acceptor = TlsAcceptor::from(tls::server_config(&ca.good(SERVER)));
    let serving = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = acceptor.accept(socket).await.expect("a session");
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                connection.abrupt_shutdown(Reason::NO_ERROR);
                while let Some(Ok(request)) = connection.accept().await {
                    drop::<(http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>)>(request);
                }
            });
        }
    });
    let (pool, count) = pool(&ca, Http2::default(), DEADLINE);
    let error = soon(pool.open(&key(address), &ConnectRequest::to(address))).await;
    assert!(matches!(error, Err(PoolError::Open { .. })), "{error:?}");
    assert!(dials(&count) <= 15, "{}", dials(&count));
    serving.abort();
}
