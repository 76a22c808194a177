//! Traffic that the mesh does not change: UDP, DNS, and everything to and from hosts outside. The packets are
//! those without a mesh, with the daemons alive and dead.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, UdpSocket};

use ambit_harness::{Family, Lab, NamespaceSpec, Place, PodSpec, Protocol, Trace, eventually};
use ambit_suites::{Rows, Server, TIMEOUT, ask, connect};
use anyhow::{Context, Result, ensure};

/// A client, a server and a protocol.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: &'static str,
    client: &'static str,
    /// A pod, or `outside`.
    server: &'static str,
    port: u16,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Udp,
    Tcp,
}

const ROWS: &[Row] = &[
    Row { name: "UDP to a mesh pod", client: "shop/web", server: "shop/db", port: 7000, how: How::Udp },
    Row { name: "UDP to the outside", client: "shop/web", server: "outside", port: 7000, how: How::Udp },
    Row { name: "DNS over UDP", client: "shop/web", server: "outside", port: 53, how: How::Udp },
    Row { name: "DNS over TCP", client: "shop/web", server: "outside", port: 53, how: How::Tcp },
    Row { name: "TCP to the outside", client: "shop/web", server: "outside", port: 443, how: How::Tcp },
    Row {
        name: "TCP to the outside, port of the tunnel",
        client: "shop/web",
        server: "outside",
        port: 15008,
        how: How::Tcp,
    },
    Row {
        name: "TCP to a pod outside the mesh",
        client: "shop/web",
        server: "legacy/far",
        port: 7000,
        how: How::Tcp,
    },
    Row {
        name: "between pods outside the mesh",
        client: "legacy/old",
        server: "legacy/far",
        port: 7001,
        how: How::Tcp,
    },
    Row {
        name: "from the outside to a pod outside",
        client: "outside",
        server: "legacy/far",
        port: 7002,
        how: How::Tcp,
    },
];

/// A DNS query for `example.test`, type A.
const QUERY: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x04test\x00\x00\x01\x00\x01";

fn lab(plain: bool) -> Result<Lab> {
    let builder = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/db").node(1))
        .pod(PodSpec::new("legacy/old"))
        .pod(PodSpec::new("legacy/far").node(1));
    if plain { builder.plain().start() } else { builder.start() }
}

fn place(lab: &Lab, name: &str) -> Place {
    if name == "outside" { lab.outside.clone() } else { lab.pod(name).place.clone() }
}

/// What of a row's packets must be the same: by direction, how many hops they have left and all that they
/// carry.
type Seen = BTreeMap<(IpAddr, IpAddr, u8), Vec<u8>>;

fn run(lab: &Lab, row: Row, family: Family) -> Result<Seen> {
    let (client, server) = (place(lab, row.client), place(lab, row.server));
    let to = SocketAddr::new(server.ip(family), row.port);
    let capture = lab.capture()?;
    match row.how {
        How::Udp => udp(&client, &server, to)?,
        How::Tcp => tcp(&client, &server, to)?,
    }
    seen(&capture.stop()?, row)
}

fn udp(client: &Place, server: &Place, to: SocketAddr) -> Result<()> {
    let listener = server.run(|| UdpSocket::bind(to))??;
    let from = SocketAddr::new(if to.is_ipv4() { client.v4.into() } else { client.v6.into() }, 0);
    let socket = client.run(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(from)?;
        // Connected UDP passes the connect hook, which must not change it.
        socket.connect(to)?;
        Ok(socket)
    })??;
    for end in [&listener, &socket] {
        end.set_read_timeout(Some(TIMEOUT))?;
    }
    let mut buffer = [0; 1500];
    for _ in 0..3 {
        socket.send(QUERY)?;
        let (length, peer) = listener.recv_from(&mut buffer).context("failed to receive the datagram")?;
        ensure!(
            peer == socket.local_addr()? && &buffer[..length] == QUERY,
            "another datagram came, from {peer}"
        );
        listener.send_to(b"an answer", peer)?;
        let length = socket.recv(&mut buffer).context("failed to receive the answer")?;
        ensure!(&buffer[..length] == b"an answer");
    }
    ensure!(socket.peer_addr()? == to);
    Ok(())
}

fn tcp(client: &Place, server: &Place, to: SocketAddr) -> Result<()> {
    let listener = server.run(|| TcpListener::bind(to))??;
    let serving = std::thread::spawn(move || -> Result<SocketAddr> {
        let (mut stream, peer) = listener.accept()?;
        let mut query = Vec::new();
        stream.read_to_end(&mut query)?;
        stream.write_all(b"an answer to ")?;
        stream.write_all(&query)?;
        Ok(peer)
    });
    let mut stream = connect(client, to)?;
    let own = stream.local_addr()?;
    stream.write_all(QUERY)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.ends_with(QUERY), "another answer came");
    let peer = serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    ensure!(peer == own, "the server saw {peer}, the client is {own}");
    Ok(())
}

/// The row's packets. TCP may cut its bytes otherwise, so they are joined; datagrams are joined with marks
/// between them.
fn seen(trace: &Trace, row: Row) -> Result<Seen> {
    let mut seen = Seen::new();
    for packet in trace.packets() {
        let ours = match row.how {
            How::Udp => packet.protocol == Protocol::Udp,
            How::Tcp => packet.protocol == Protocol::Tcp,
        };
        if ours && (packet.source.port() == row.port || packet.destination.port() == row.port) {
            let bytes = seen.entry((packet.source.ip(), packet.destination.ip(), packet.ttl)).or_default();
            bytes.extend_from_slice(packet.payload);
            if row.how == How::Udp {
                bytes.extend_from_slice(b"\n--\n");
            }
        }
    }
    ensure!(seen.len() == 2, "expected one kind of packets in each direction: {seen:?}");
    Ok(seen)
}

#[test]
fn native_packets_are_equal_with_and_without_a_mesh() -> Result<()> {
    let families = [Family::V4, Family::V6];
    let without = lab(true)?;
    let mut plain = Vec::new();
    for row in ROWS {
        for family in families {
            plain.push((row, family, run(&without, *row, family).with_context(|| row.name)?));
        }
    }
    without.finish()?;
    let with = lab(false)?;
    let mut table = Rows::new();
    for state in ["alive", "killed"] {
        if state == "killed" {
            for node in &with.nodes {
                node.ztunnel.kill()?;
            }
            with.controller.kill()?;
        }
        for (row, family, expected) in &plain {
            table.row(&format!("{}, {family:?}, daemons {state}", row.name), || {
                let seen = run(&with, **row, *family)?;
                ensure!(seen == *expected, "\n  without a mesh {expected:?}\n  with it {seen:?}");
                Ok(())
            });
        }
    }
    table.finish();
    with.finish()
}

/// Native connections are not counted: after them one connection in a tunnel is, and it is the only one.
#[test]
fn native_connections_are_not_counted_by_the_daemon() -> Result<()> {
    const APP: u16 = 7000;
    let lab = lab(false)?;
    for row in ROWS {
        run(&lab, *row, Family::V4).with_context(|| row.name)?;
    }
    let db = lab.pod("shop/db");
    let _server = Server::start(&db, "shop/db", APP)?;
    ask(&lab.pod("shop/web"), SocketAddr::new(db.ip(Family::V4), APP))?;
    // Reports come in order: once the last one is counted, none of an earlier connection is to come.
    for node in &lab.nodes {
        eventually(&format!("{} has counted the tunnel", node.name), || {
            let opened = node.metrics()?.sum("istio_tcp_connections_opened_total", &[]);
            ensure!(opened > 0.5, "nothing is counted");
            Ok(())
        })?;
        let metrics = node.metrics()?;
        for (name, expected) in
            [("istio_tcp_connections_opened_total", 1.0), ("istio_tcp_connections_failed_total", 0.0)]
        {
            let count = metrics.sum(name, &[]);
            assert!((count - expected).abs() < 0.5, "{} counts {count} in {name}", node.name);
        }
    }
    lab.finish()
}
