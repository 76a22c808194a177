//! A tunnel as a stream: read and written without a relay, as a waypoint does.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::Poll;

use ambit_hbone::relay::{self, AnyStream, Traffic};
use ambit_hbone::server::Settings;
use ambit_hbone::{Http2, Tunnel};
use h2::Reason;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufStream, ReadBuf};
use tokio::sync::mpsc;

use crate::ca::Ca;
use crate::mesh::{DEADLINE, Inbound, Mesh, SERVER, key, pool, soon};

/// A mesh whose server's proxy hands over the tunnels that it accepts.
struct Tunnels {
    mesh: Mesh,
    accepted: Mutex<mpsc::UnboundedReceiver<Tunnel>>,
}

impl Tunnels {
    async fn start(http2: Http2) -> Self {
        let ca = Ca::new();
        let (sender, accepted) = mpsc::unbounded_channel();
        let settings = Settings { http2: http2.clone(), ..Settings::default() };
        let certificate = ca.good(SERVER);
        let inbound = Inbound::serving(&certificate, settings, move |incoming, _| {
            let sender = sender.clone();
            Box::pin(async move {
                let _unread = sender.send(incoming.responder.accept().expect("a client"));
            })
        });
        let inbound = inbound.await;
        let (pool, dials) = pool(&ca, http2, DEADLINE);
        let key = key(inbound.address);
        Self { mesh: Mesh { inbound, pool, dials, key }, accepted: Mutex::new(accepted) }
    }

    /// Both ends of a new tunnel: the client's and the server's.
    async fn pair(&self) -> (Tunnel, Tunnel) {
        let client = soon(self.mesh.open("127.0.0.1:80".parse().expect("an address"))).await;
        let server = self.accepted.lock().try_recv().expect("the tunnel was accepted");
        (client.expect("a tunnel"), server)
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).expect("a byte")).collect()
}

/// Writes until no more is taken, and says how much was.
async fn fill(tunnel: &mut Tunnel, piece: &[u8]) -> usize {
    let mut count = 0;
    let quiet = std::time::Duration::from_millis(200);
    while let Ok(written) = tokio::time::timeout(quiet, tunnel.write(piece)).await {
        count += written.expect("a stream");
        assert!(count < 64 << 20, "the writer was never stopped");
    }
    count
}

/// What one read finds at once.
async fn read_now(tunnel: &mut Tunnel) -> Option<io::Result<usize>> {
    poll_fn(|context| {
        let mut bytes = [0; 16];
        let mut buffer = ReadBuf::new(&mut bytes);
        Poll::Ready(match Pin::new(&mut *tunnel).poll_read(context, &mut buffer) {
            Poll::Ready(read) => Some(read.map(|()| buffer.filled().len())),
            Poll::Pending => None,
        })
    })
    .await
}

/// The reason of the reset that an error names.
fn reason(error: io::Error) -> Option<Reason> {
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    error.downcast::<h2::Error>().expect("the stream's own error").reason()
}

#[tokio::test]
async fn shutdown_ends_one_direction_only() {
    let tunnels = Tunnels::start(Http2::default()).await;
    for swapped in [false, true] {
        let (client, server) = tunnels.pair().await;
        let (mut a, mut b) = if swapped { (server, client) } else { (client, server) };
        a.write_all(b"request").await.expect("room");
        a.shutdown().await.expect("an end");
        a.shutdown().await.expect("ending again is harmless");
        assert_eq!(a.write(b"more").await.expect_err("it has ended").kind(), ErrorKind::BrokenPipe);
        let mut request = Vec::new();
        soon(b.read_to_end(&mut request)).await.expect("the request and the end");
        assert_eq!(request, b"request");
        let answer = pattern(10 << 20);
        let sending = tokio::spawn({
            let answer = answer.clone();
            async move {
                b.write_all(&answer).await.expect("a reader");
                b.shutdown().await.expect("an end");
            }
        });
        let mut got = Vec::new();
        soon(a.read_to_end(&mut got)).await.expect("the answer and the end");
        assert!(got == answer, "the bytes are others");
        sending.await.expect("sent");
    }
}

#[tokio::test]
async fn drop_before_end_resets_the_tunnel() {
    let tunnels = Tunnels::start(Http2::default()).await;
    for swapped in [false, true] {
        let (client, server) = tunnels.pair().await;
        let (mut a, mut b) = if swapped { (server, client) } else { (client, server) };
        a.write_all(b"last words").await.expect("room");
        let mut words = [0; 10];
        soon(b.read_exact(&mut words)).await.expect("what was written");
        drop(a);
        let error = soon(b.read(&mut words)).await.expect_err("a reset, no end");
        assert_eq!(reason(error), Some(Reason::CANCEL), "swapped: {swapped}");
        let error = soon(b.write_all(b"anything")).await.expect_err("a reset");
        assert_eq!(reason(error), Some(Reason::CANCEL), "swapped: {swapped}");
    }
}

#[tokio::test]
async fn reset_wakes_a_writer_that_waits_for_room() {
    let tunnels = Tunnels::start(Http2::default()).await;
    let (mut client, server) = tunnels.pair().await;
    fill(&mut client, &pattern(64 << 10)).await;
    let waiting = tokio::spawn(async move { client.write(b"more").await });
    drop(server);
    let error = soon(waiting).await.expect("no panic").expect_err("a reset");
    assert_eq!(reason(error), Some(Reason::CANCEL));
}

#[tokio::test]
async fn dead_connection_fails_reads_and_writes() {
    let tunnels = Tunnels::start(Http2::default()).await;
    let (mut client, server) = tunnels.pair().await;
    tunnels.mesh.inbound.kill();
    let error = soon(client.read(&mut [0])).await.expect_err("no end");
    assert!(error.downcast::<h2::Error>().is_ok());
    soon(client.write_all(b"anything")).await.expect_err("no connection");
    drop(server);
}

#[tokio::test]
async fn stalled_reader_stops_the_writer_and_releases_the_window_as_it_reads() {
    const WINDOW: usize = 256 << 10;
    let http2 = Http2 { stream_window: 256 << 10, send_buffer: 64 << 10, ..Http2::default() };
    let tunnels = Tunnels::start(http2).await;
    let (mut client, mut server) = tunnels.pair().await;
    let piece = pattern(16 << 10);
    let first = fill(&mut client, &piece).await;
    assert!((WINDOW..=WINDOW + (64 << 10)).contains(&first), "{first} bytes were taken without a reader");
    assert_eq!(fill(&mut client, &piece).await, 0, "and no more");
    // Half of the window is read, and as much can be written again.
    let mut half = vec![0; WINDOW / 2];
    soon(server.read_exact(&mut half)).await.expect("data");
    let second = fill(&mut client, &piece).await;
    assert!((WINDOW / 4..=WINDOW / 2 + (64 << 10)).contains(&second), "{second} bytes more");
    client.shutdown().await.expect("an end");
    let mut rest = Vec::new();
    soon(server.read_to_end(&mut rest)).await.expect("all of it and the end");
    assert_eq!(half.len() + rest.len(), first + second);
}

#[tokio::test]
async fn stalled_reader_leaves_room_for_other_tunnels() {
    let tunnels = Tunnels::start(Http2::default()).await;
    let mut stopped = Vec::new();
    for _ in 0..5 {
        let (mut client, server) = tunnels.pair().await;
        fill(&mut client, &pattern(64 << 10)).await;
        stopped.push((client, server));
    }
    let (mut client, mut server) = tunnels.pair().await;
    let sent = pattern(4 << 20);
    let sending = tokio::spawn({
        let sent = sent.clone();
        async move {
            client.write_all(&sent).await.expect("a reader");
            client.shutdown().await.expect("an end");
            client
        }
    });
    let mut got = Vec::new();
    soon(server.read_to_end(&mut got)).await.expect("all of it");
    assert!(got == sent, "the bytes are others");
    drop(sending.await.expect("sent"));
    assert_eq!(tunnels.mesh.pool.connections(), 1);
}

#[tokio::test]
async fn split_halves_work_in_two_tasks() {
    let tunnels = Tunnels::start(Http2::default()).await;
    let (client, server) = tunnels.pair().await;
    let data = pattern(4 << 20);
    let side = |tunnel: Tunnel| {
        let data = data.clone();
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(tunnel);
            let sent = data.clone();
            let sending = tokio::spawn(async move {
                writer.write_all(&sent).await.expect("room");
                writer.shutdown().await.expect("an end");
                writer
            });
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.expect("all of it");
            assert!(got == data, "the bytes are others");
            sending.await.expect("sent");
        })
    };
    let (one, other) = (side(client), side(server));
    soon(one).await.expect("the client's side");
    soon(other).await.expect("the server's side");
}

/// What was read off a stream before a relay takes it over is not lost, and neither is what was ended.
#[tokio::test]
async fn relay_continues_where_a_reader_stopped() {
    let tunnels = Tunnels::start(Http2::default()).await;
    let (mut client, mut server) = tunnels.pair().await;
    client.write_all(b"header|body").await.expect("room");
    client.shutdown().await.expect("an end");
    let mut header = [0; 7];
    soon(server.read_exact(&mut header)).await.expect("the header");
    let (mut application, near) = crate::mesh::tcp_pair().await;
    let relay = tokio::spawn(async move { relay::tunnel(near, server, &Traffic::default()).await });
    let mut body = Vec::new();
    soon(application.read_to_end(&mut body)).await.expect("the rest");
    assert_eq!(body, b"body");
    application.write_all(b"answer").await.expect("room");
    drop(application);
    let mut answer = Vec::new();
    soon(client.read_to_end(&mut answer)).await.expect("the answer");
    assert_eq!(answer, b"answer");
    assert!(soon(relay).await.expect("a relay").end.is_clean());
}

#[tokio::test]
async fn any_stream_is_relayed_and_flushed_when_idle() {
    let tunnels = Tunnels::start(Http2::default()).await;
    let (mut client, server) = tunnels.pair().await;
    let (mut application, near) = tokio::io::duplex(4 << 10);
    let near = AnyStream(BufStream::new(near));
    let relay = tokio::spawn(async move { relay::streams(near, server, &Traffic::default()).await });
    for _ in 0..3 {
        client.write_all(b"question").await.expect("room");
        let mut question = [0; 8];
        soon(application.read_exact(&mut question)).await.expect("a question, without an end after it");
        application.write_all(b"answer").await.expect("room");
        soon(client.read_exact(&mut [0; 6])).await.expect("an answer");
    }
    drop(application);
    assert_eq!(soon(client.read(&mut [0])).await.expect("an end"), 0);
    client.shutdown().await.expect("an end");
    let outcome = soon(relay).await.expect("a relay");
    assert!(outcome.end.is_clean(), "{:?}", outcome.end);
    assert_eq!((outcome.sent, outcome.received), (18, 24));
}

#[tokio::test]
async fn empty_io_does_not_end_stream() {
    let tunnels = Tunnels::start(Http2::default()).await;
    let (mut client, mut server) = tunnels.pair().await;
    assert!(read_now(&mut server).await.is_none(), "nothing was sent");
    assert_eq!(server.read(&mut []).await.expect("nothing asked for"), 0);
    assert_eq!(client.write(&[]).await.expect("nothing to write"), 0);
    client.write_all(b"x").await.expect("room");
    assert_eq!(soon(server.read(&mut [0; 8])).await.expect("a byte"), 1);
}
