//! What an application may rely on: each row runs over plain TCP, over two relayed TCP connections, through a
//! tunnel and through relayed streams, with either side in either role, and must have the same result.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ambit_hbone::relay::{self, End, Traffic};
use futures::future::BoxFuture;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::mesh::{Mesh, Relay, soon, tcp_pair, until};

type Play = fn(TcpStream, TcpStream) -> BoxFuture<'static, ()>;

/// Name, what the two ends do, and how the client's relay must say it ended when the client is the first end.
const ROWS: &[(&str, Play, &str)] = &[
    ("request, end, 10 MiB in answer", |a, b| Box::pin(half_close(a, b)), "closed"),
    ("both end at once, 4 MiB under way each", |a, b| Box::pin(both_end(a, b)), "closed"),
    ("server speaks first", |a, b| Box::pin(other_speaks_first(a, b)), "closed"),
    ("ends without a byte", |a, b| Box::pin(silent(a, b)), "closed"),
    ("reset", |a, b| Box::pin(reset(a, b)), "reset"),
    ("reset after data", |a, b| Box::pin(reset_after_data(a, b)), "reset"),
    ("reset after the peer's end", |a, b| Box::pin(reset_after_peers_end(a, b)), "reset"),
    ("reset after its own end", |a, b| Box::pin(reset_after_own_end(a, b)), "reset"),
    ("close with unread data", |a, b| Box::pin(close_unread(a, b)), "reset"),
    ("stalled reader stops the writer", |a, b| Box::pin(stalled(a, b)), "closed"),
    ("stalled reader resets", |a, b| Box::pin(stalled_reader_resets(a, b)), "reset"),
    ("stopped writer resets", |a, b| Box::pin(stopped_writer_resets(a, b)), "reset"),
    ("64 Ki single bytes", |a, b| Box::pin(single_bytes(a, b)), "closed"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_tcp_behaves_as_the_table_says() {
    for (name, play, _) in ROWS {
        println!("{name}");
        let (a, b) = tcp_pair().await;
        soon(play(a, b)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_tcp_behaves_like_plain_tcp() {
    for (name, play, ended) in ROWS {
        for swapped in [false, true] {
            println!("{name}, swapped: {swapped}");
            let (client, near) = tcp_pair().await;
            let (far, server) = tcp_pair().await;
            let relay = tokio::spawn(async move { relay::tcp(near, far, &Traffic::default()).await });
            let (a, b) = if swapped { (server, client) } else { (client, server) };
            soon(play(a, b)).await;
            let end = soon(relay).await.expect("a relay").end;
            assert_eq!(kind(&end), *ended, "{name}: {end:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnel_behaves_like_plain_tcp() {
    let mesh = Mesh::start().await;
    play_all(&mesh).await;
    assert_eq!(mesh.pool.connections(), 1, "one connection carried them all");
}

#[tokio::test]
async fn tunnel_behaves_like_plain_tcp_on_one_thread() {
    play_all(&Mesh::start().await).await;
}

/// The relay of any streams keeps the same promises: beside a TCP connection, and between two tunnels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_streams_behave_like_plain_tcp() {
    let any = |near, tunnel| -> BoxFuture<_> {
        Box::pin(async move { relay::socket(near, tunnel, &Traffic::default()).await })
    };
    play_all_by(&Mesh::start().await, any).await;
    let waypoint = Mesh::with_waypoint().await;
    play_all(&waypoint).await;
}

async fn play_all(mesh: &Mesh) {
    let tunnel = |near, tunnel| -> BoxFuture<_> {
        Box::pin(async move { relay::tunnel(near, tunnel, &Traffic::default()).await })
    };
    play_all_by(mesh, tunnel).await;
}

async fn play_all_by(mesh: &Mesh, relay: Relay) {
    for (name, play, ended) in ROWS {
        for swapped in [false, true] {
            println!("{name}, swapped: {swapped}");
            let (client, server, relay) = mesh.pair_by(relay).await;
            let (a, b) = if swapped { (server, client) } else { (client, server) };
            soon(play(a, b)).await;
            let end = soon(relay).await.expect("a relay").end;
            assert_eq!(kind(&end), *ended, "{name}: {end:?}");
        }
    }
}

fn kind(end: &End) -> &'static str {
    match end {
        End::Closed => "closed",
        End::First(_) | End::TunnelReset(_) | End::Second(_) => "reset",
        End::Tunnel(_) => "broken",
    }
}

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Arc<[u8]> {
    (0..length).map(|at| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).expect("a byte")).collect()
}

async fn expect_rest(socket: &mut TcpStream, expected: &[u8]) {
    let mut got = Vec::new();
    socket.read_to_end(&mut got).await.expect("everything and the end");
    assert_eq!(got.len(), expected.len());
    assert!(got == expected, "the bytes are others");
}

async fn expect_reset(socket: &mut TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match socket.read(&mut buffer).await {
            Ok(0) => panic!("a clean end instead of a reset"),
            Ok(_) => {}
            Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}

/// After the end was read, a reset shows only in writing.
async fn expect_writes_fail(socket: &mut TcpStream) {
    loop {
        if let Err(error) = socket.write_all(b"still there?").await {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn send_reset(socket: TcpStream) {
    socket.set_zero_linger().expect("linger");
    drop(socket);
}

async fn half_close(mut a: TcpStream, mut b: TcpStream) {
    let answer = pattern(10 << 20);
    a.write_all(b"request").await.expect("room");
    a.shutdown().await.expect("an end");
    expect_rest(&mut b, b"request").await;
    let sending = {
        let answer = answer.clone();
        tokio::spawn(async move {
            b.write_all(&answer).await.expect("a reader");
            b.shutdown().await.expect("an end");
            b
        })
    };
    expect_rest(&mut a, &answer).await;
    sending.await.expect("sent");
}

async fn both_end(a: TcpStream, b: TcpStream) {
    let data = pattern(4 << 20);
    let side = |socket: TcpStream| {
        let data = data.clone();
        tokio::spawn(async move {
            let (mut reader, mut writer) = socket.into_split();
            let sent = data.clone();
            let sending = tokio::spawn(async move {
                writer.write_all(&sent).await.expect("room");
                writer.shutdown().await.expect("an end");
                writer
            });
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.expect("all of it");
            assert!(got[..] == data[..], "the bytes are others");
            sending.await.expect("sent");
        })
    };
    let (a, b) = (side(a), side(b));
    a.await.expect("one side");
    b.await.expect("the other");
}

async fn other_speaks_first(mut a: TcpStream, mut b: TcpStream) {
    b.write_all(b"220 ready").await.expect("room");
    let mut greeting = [0; 9];
    a.read_exact(&mut greeting).await.expect("a greeting");
    a.write_all(b"QUIT").await.expect("room");
    a.shutdown().await.expect("an end");
    expect_rest(&mut b, b"QUIT").await;
    drop(b);
    expect_rest(&mut a, b"").await;
}

async fn silent(a: TcpStream, mut b: TcpStream) {
    drop(a);
    expect_rest(&mut b, b"").await;
}

async fn reset(a: TcpStream, mut b: TcpStream) {
    send_reset(a);
    expect_reset(&mut b).await;
}

async fn reset_after_data(mut a: TcpStream, mut b: TcpStream) {
    a.write_all(b"last words").await.expect("room");
    send_reset(a);
    let mut words = [0; 10];
    b.read_exact(&mut words).await.expect("what was written before the reset");
    assert_eq!(&words, b"last words");
    expect_reset(&mut b).await;
}

async fn reset_after_peers_end(mut a: TcpStream, mut b: TcpStream) {
    b.write_all(b"that is all").await.expect("room");
    b.shutdown().await.expect("an end");
    expect_rest(&mut a, b"that is all").await;
    send_reset(a);
    expect_reset(&mut b).await;
}

async fn reset_after_own_end(mut a: TcpStream, mut b: TcpStream) {
    a.shutdown().await.expect("an end");
    expect_rest(&mut b, b"").await;
    b.write_all(b"still there").await.expect("room");
    let mut answer = [0; 11];
    a.read_exact(&mut answer).await.expect("an answer");
    send_reset(a);
    expect_writes_fail(&mut b).await;
}

async fn close_unread(a: TcpStream, mut b: TcpStream) {
    b.write_all(&pattern(10_000)).await.expect("room");
    // All of it has arrived and none was read.
    let mut seen = vec![0; 10_000];
    while a.peek(&mut seen).await.expect("data") < 10_000 {}
    drop(a);
    expect_reset(&mut b).await;
}

/// Writes until nothing is taken for a while: no state says that every buffer on the way is full. On a slow
/// machine less is written, and the tests require the same.
async fn fill(socket: &TcpStream) -> Vec<u8> {
    let piece = pattern(64 << 10);
    let mut sent = Vec::new();
    loop {
        let wait = tokio::time::timeout(Duration::from_millis(300), socket.writable()).await;
        let Ok(writable) = wait else { return sent };
        writable.expect("a connection");
        match socket.try_write(&piece) {
            Ok(count) => sent.extend_from_slice(&piece[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        // Two proxies' windows and the sockets' own buffers, of the largest size that the kernel gives.
        assert!(sent.len() < 64 << 20, "the writer was never stopped");
    }
}

async fn stalled(mut a: TcpStream, mut b: TcpStream) {
    let sent = fill(&a).await;
    // The other direction is not held up.
    b.write_all(b"wait").await.expect("room");
    let mut word = [0; 4];
    a.read_exact(&mut word).await.expect("the other direction");
    a.shutdown().await.expect("an end");
    expect_rest(&mut b, &sent).await;
}

async fn stalled_reader_resets(mut a: TcpStream, b: TcpStream) {
    fill(&a).await;
    drop(b);
    expect_reset(&mut a).await;
}

async fn stopped_writer_resets(a: TcpStream, mut b: TcpStream) {
    fill(&a).await;
    send_reset(a);
    expect_reset(&mut b).await;
}

async fn single_bytes(mut a: TcpStream, mut b: TcpStream) {
    a.set_nodelay(true).expect("no delay");
    let sent = pattern(64 << 10);
    let written = Arc::new(AtomicUsize::new(0));
    let sending = {
        let (sent, written) = (sent.clone(), written.clone());
        tokio::spawn(async move {
            for byte in sent.chunks(1) {
                a.write_all(byte).await.expect("room");
                written.fetch_add(1, Ordering::Relaxed);
            }
            a.shutdown().await.expect("an end");
            a
        })
    };
    // Not read until as much as can be is under way.
    stands_still(&written).await;
    expect_rest(&mut b, &sent).await;
    drop(b);
    sending.await.expect("sent");
}

/// Waits until a counter that has begun to count stays as it is.
async fn stands_still(count: &AtomicUsize) {
    const LOOKS: usize = 10;
    let mut same = 0;
    let mut last = 0;
    while same < LOOKS {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = count.load(Ordering::Relaxed);
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
    }
}

/// Cuts one side's relay or proxy, and says what each application sees.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_relay_or_dead_proxy_resets_both_applications() {
    type Cut = fn(&Mesh, &JoinHandle<relay::Outcome>);
    let rows: &[(&str, Cut)] = &[
        ("the client's relay is dropped", |_, relay| relay.abort()),
        ("the server's process dies", |mesh, _| mesh.inbound.kill()),
    ];
    for (name, cut) in rows {
        println!("{name}");
        let mesh = Mesh::start().await;
        let (mut client, mut server, relay) = mesh.pair().await;
        client.write_all(b"hello").await.expect("room");
        server.read_exact(&mut [0; 5]).await.expect("hello");
        cut(&mesh, &relay);
        soon(expect_reset(&mut client)).await;
        soon(expect_reset(&mut server)).await;
    }
}

/// A tunnel whose reader has stopped holds up none of the others on the same connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_do_not_block_other_tunnels() {
    let mesh = Mesh::start().await;
    let mut stopped = Vec::new();
    for _ in 0..12 {
        let pair = mesh.pair().await;
        fill(&pair.0).await;
        stopped.push(pair);
    }
    let (client, server, _relay) = mesh.pair().await;
    soon(half_close(client, server)).await;
    assert_eq!(mesh.pool.connections(), 1);
}

#[tokio::test]
async fn traffic_is_counted_while_it_flows() {
    let (mut client, near) = tcp_pair().await;
    let (far, mut server) = tcp_pair().await;
    let traffic = Arc::new(Traffic::default());
    let counted = traffic.clone();
    let relay = tokio::spawn(async move { relay::tcp(near, far, &counted).await });
    client.write_all(b"12345").await.expect("room");
    server.read_exact(&mut [0; 5]).await.expect("five");
    server.write_all(b"123").await.expect("room");
    client.read_exact(&mut [0; 3]).await.expect("three");
    until("counted", || (traffic.sent(), traffic.received()) == (5, 3)).await;
    drop((client, server));
    let outcome = soon(relay).await.expect("a relay");
    assert_eq!((outcome.sent, outcome.received), (5, 3));
    assert!(outcome.end.is_clean());
}

#[tokio::test]
async fn both_proxies_count_the_same_bytes() {
    let mut mesh = Mesh::start().await;
    let (mut client, mut server, relay) = mesh.pair().await;
    client.write_all(&pattern(100_000)).await.expect("room");
    server.read_exact(&mut vec![0; 100_000]).await.expect("all");
    server.write_all(b"ok").await.expect("room");
    client.read_exact(&mut [0; 2]).await.expect("ok");
    drop((client, server));
    let near = soon(relay).await.expect("a relay");
    let far = soon(mesh.inbound.outcomes.recv()).await.expect("an outcome");
    assert_eq!((near.sent, near.received), (100_000, 2));
    assert_eq!((far.sent, far.received), (2, 100_000));
    assert!(near.end.is_clean() && far.end.is_clean());
}

/// One segment whose last byte is urgent: a read ends before that byte, and what follows it must not wait for
/// more to arrive. As in the proxy, the relay's sockets have urgent data inline.
#[tokio::test]
async fn urgent_byte_arrives_with_its_segment() {
    async fn sent_and_received(client: TcpStream, mut server: TcpStream) {
        for _ in 0..3 {
            SockRef::from(&client).send_out_of_band(b"abX").expect("sent");
            let mut got = [0; 3];
            soon(server.read_exact(&mut got)).await.expect("all of it");
            assert_eq!(&got, b"abX");
        }
    }
    fn inline(near: &TcpStream) {
        SockRef::from(near).set_out_of_band_inline(true).expect("inline");
    }
    let ((client, near), (far, server)) = (tcp_pair().await, tcp_pair().await);
    inline(&near);
    tokio::spawn(async move { relay::tcp(near, far, &Traffic::default()).await });
    sent_and_received(client, server).await;
    let relay: Relay = |near, tunnel| {
        inline(&near);
        Box::pin(async move { relay::tunnel(near, tunnel, &Traffic::default()).await })
    };
    let mesh = Mesh::start().await;
    let (client, server, _relay) = mesh.pair_by(relay).await;
    sent_and_received(client, server).await;
}
