//! Against this machine's kernel, with connections over loopback. Closing others' sockets needs root.

#![expect(clippy::unwrap_used, reason = "a test ends at what it cannot do")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ambit_diag::{Diag, State, TcpSocket};

struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    /// `listen` and `dial` differ where a dual-stack listener takes IPv4.
    fn new(listen: &str, dial: &str) -> Self {
        let listener = TcpListener::bind(format!("{listen}:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(format!("{dial}:{port}")).unwrap();
        let (server, _) = listener.accept().unwrap();
        Self { client, server }
    }

    fn ends(&self) -> (SocketAddr, SocketAddr) {
        let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        (canonical(self.server.local_addr().unwrap()), canonical(self.client.local_addr().unwrap()))
    }

    /// The accepting end.
    fn find(&self, diag: &mut Diag) -> Option<TcpSocket> {
        let (server, client) = self.ends();
        find(diag, server, client)
    }
}

/// By both ends: connections to different listeners may share the client's ephemeral port.
fn find(diag: &mut Diag, local: SocketAddr, remote: SocketAddr) -> Option<TcpSocket> {
    diag.sockets().unwrap().into_iter().find(|socket| socket.local == local && socket.remote == remote)
}

fn eventually(diag: &mut Diag, pair: &Pair, what: &str, is: impl Fn(&TcpSocket) -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let found = pair.find(diag);
        if found.as_ref().is_some_and(&is) {
            return;
        }
        assert!(Instant::now() < until, "{what}: {found:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn byte_counts_match_what_applications_sent() {
    let mut diag = Diag::open().unwrap();
    for (name, listen, dial) in [
        ("IPv4", "127.0.0.1", "127.0.0.1"),
        ("IPv6", "[::1]", "[::1]"),
        ("IPv4 on IPv6", "[::]", "127.0.0.1"),
    ] {
        let mut pair = Pair::new(listen, dial);
        let fresh = pair.find(&mut diag).unwrap_or_else(|| panic!("{name}: not listed"));
        assert_eq!(
            (fresh.received(), fresh.sent_by_server(), fresh.state),
            (0, 0, State::Established),
            "{name}"
        );

        pair.client.write_all(&[1; 1000]).unwrap();
        pair.server.write_all(&vec![2; 70_000]).unwrap();
        pair.client.read_exact(&mut vec![0; 70_000]).unwrap();
        let all = |s: &TcpSocket| (s.received(), s.sent_by_server()) == (1000, 70_000);
        eventually(&mut diag, &pair, name, all);

        pair.client.shutdown(Shutdown::Write).unwrap();
        eventually(&mut diag, &pair, name, |s| s.state == State::CloseWait);
        assert!(all(&pair.find(&mut diag).unwrap()), "{name}: the client's FIN is no byte");

        let pair = Pair::new(listen, dial);
        pair.server.shutdown(Shutdown::Write).unwrap();
        eventually(&mut diag, &pair, name, |s| s.state == State::FinWait2);
        let ended = pair.find(&mut diag).unwrap();
        assert_eq!((ended.received(), ended.sent_by_server()), (0, 0), "{name}: nor is the server's");
    }
}

#[test]
fn only_socket_with_matching_cookie_is_closed() {
    let mut diag = Diag::open().unwrap();
    for (name, listen, dial) in [
        ("IPv4", "127.0.0.1", "127.0.0.1"),
        ("IPv6", "[::1]", "[::1]"),
        ("IPv4 on IPv6", "[::]", "127.0.0.1"),
    ] {
        let (mut doomed, mut other) = (Pair::new(listen, dial), Pair::new(listen, dial));
        let socket = doomed.find(&mut diag).expect(name);
        assert!(
            !diag.destroy(socket.local, socket.remote, socket.cookie + 1).unwrap(),
            "{name}: another's cookie"
        );
        assert!(diag.destroy(socket.local, socket.remote, socket.cookie).unwrap(), "{name}");
        let error = doomed.client.read(&mut [0]).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}: the peer");
        let error = doomed.server.read(&mut [0]).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{name}: the owner");
        assert!(!diag.destroy(socket.local, socket.remote, socket.cookie).unwrap(), "{name}: a second time");

        other.client.write_all(&[7]).unwrap();
        let mut byte = [0];
        other.server.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [7], "{name}: others live on");
    }
}

#[test]
fn long_dumps_are_complete() {
    let mut diag = Diag::open().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let pairs: Vec<_> =
        (0..300).map(|_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap())).collect();
    let listed = diag.sockets().unwrap();
    assert_eq!(listed.iter().filter(|socket| socket.local == address).count(), pairs.len());
}

#[test]
fn socket_bound_to_a_device_is_closed() {
    assert!(ambit_diag::can_close_sockets().unwrap(), "this kernel closes sockets");
    let mut diag = Diag::open().unwrap();
    for (name, address, domain) in
        [("IPv4", "127.0.0.1:0", socket2::Domain::IPV4), ("IPv6", "[::1]:0", socket2::Domain::IPV6)]
    {
        let listener = TcpListener::bind(address).unwrap();
        let client = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
        client.bind_device(Some(b"lo")).unwrap();
        client.connect(&listener.local_addr().unwrap().into()).unwrap();
        let mut client = TcpStream::from(client);
        let local = client.local_addr().unwrap();
        let remote = client.peer_addr().unwrap();
        let bound = find(&mut diag, local, remote).expect(name);
        assert_ne!(bound.interface, 0, "{name}");
        assert!(diag.destroy(bound.local, bound.remote, bound.cookie).unwrap(), "{name}: closed");
        let error = client.read(&mut [0]).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{name}");
        assert!(!diag.destroy(bound.local, bound.remote, bound.cookie).unwrap(), "{name}: gone");
    }
}

#[test]
fn accepted_and_connected_sockets_are_told_apart() {
    let mut diag = Diag::open().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(diag.listening().unwrap().contains(&port));
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    drop(listener);
    assert!(!diag.listening().unwrap().contains(&port));
    for round in 0..2 {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let mut of = |stream: &TcpStream| {
                let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
                find(&mut diag, local, remote).and_then(|socket| socket.accepted)
            };
            let told = (of(&server), of(&client));
            if told == (Some(true), Some(false)) {
                break;
            }
            assert!(Instant::now() < until, "round {round}: {told:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        client.write_all(b"ping").unwrap();
        server.write_all(b"pong").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
    }
}
