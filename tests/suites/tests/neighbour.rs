//! A hostile neighbour: a pod with `CAP_NET_RAW` beside two pods that talk over the direct path. It answers
//! for their addresses, moves them in the bridge's table, forges handshakes and data with the exact sequence
//! numbers, takes their addresses, and gets that of a pod that has died. It reads no byte of their
//! connections and is taken for neither; what it tries is counted.
//!
//! Each attack is first run against the same pods without a mesh, where it must succeed: else that it fails
//! proves nothing.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ambit_harness::{Capture, Family, Lab, Layout, NamespaceSpec, Place, Pod, PodSpec, eventually};
use ambit_suites::forge::{self, Disguise, Forger, Hardware, SYN, Segment};
use ambit_suites::{MARKER, Rows, Server, paths};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

const APP: u16 = 5432;
/// Long enough for an answer on a busy machine; what an attack breaks takes as long.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long a forged packet that is let through may take to arrive and be answered. That it is not, the
/// counter of dropped packets proves.
const ARRIVAL: Duration = Duration::from_millis(400);
/// How long the neighbour spoofs while the others talk.
const SPOOFING: Duration = Duration::from_secs(2);

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  namespace: \
                      shop\n  name: strict\nspec: {mtls: {mode: STRICT}}\n";

/// Two pods that talk, a third that dies, and their neighbour.
struct World {
    lab: Lab,
    client: Pod,
    server: Pod,
    dying: Pod,
    neighbour: Pod,
    layout: Layout,
    mesh: bool,
    _servers: [Server; 2],
}

impl World {
    fn new(layout: Layout, mesh: bool) -> Result<Self> {
        let builder = Lab::builder()
            .nodes(1)
            .layout(layout)
            .namespace(NamespaceSpec::mesh("shop"))
            .namespace(NamespaceSpec::new("legacy"))
            .pod(PodSpec::new("shop/web"))
            .pod(PodSpec::new("shop/db"))
            .pod(PodSpec::new("shop/dying"))
            .pod(PodSpec::new("legacy/mallory"))
            .object("strict", STRICT);
        let lab = if mesh { builder } else { builder.plain() }.start()?;
        let pod = |name: &str| lab.pod(name);
        let (client, server) = (pod("shop/web"), pod("shop/db"));
        let (dying, neighbour) = (pod("shop/dying"), pod("legacy/mallory"));
        for pod in [&client, &server, &dying] {
            // So that forged segments need no timestamps.
            pod.netns.sysctl(&[("ipv4/tcp_timestamps", "0")])?;
        }
        // It passes on what it is sent, as a man in the middle does.
        neighbour.netns.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/eth0/send_redirects", "0"),
        ])?;
        let servers = [Server::start(&server, "shop/db", APP)?, Server::start(&dying, "shop/dying", APP)?];
        Ok(Self { lab, client, server, dying, neighbour, layout, mesh, _servers: servers })
    }

    fn families(&self) -> &'static [Family] {
        if self.layout == Layout::RoutedIpv4 { &[Family::V4] } else { &Family::BOTH }
    }

    /// Makes connections between the two until the kernel carries them by itself, if there is a mesh.
    fn warm(&self, to: SocketAddr) -> Result<()> {
        if self.mesh { paths::warm(&self.lab.nodes[0], &self.client, to) } else { Ok(()) }
    }

    /// Where the neighbour's frames go first: to whom they are for, or to the node's end of its link.
    fn next_hop(&self, to: &Pod) -> Result<Hardware> {
        if self.layout == Layout::Bridge {
            return forge::hardware(to, "eth0");
        }
        forge::hardware(&self.lab.nodes[0].place, "pod3")
    }

    /// How many packets were dropped for this reason.
    fn dropped(&self, reason: &str) -> Result<f64> {
        let labels = [("reason", reason)];
        Ok(self.lab.nodes[0].metrics()?.sum("ambit_link_packets_dropped_total", &labels))
    }

    /// Runs an attack, and requires that at least one packet was dropped for a reason.
    fn counted<T>(&self, reason: &str, attack: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.dropped(reason)?;
        let result = attack()?;
        ensure!(self.dropped(reason)? > before, "{reason} is not counted");
        Ok(result)
    }

    /// Forgets what spoofing has left, or the next attack would begin with it.
    fn forget(&self) -> Result<()> {
        for pod in [&self.client, &self.server, &self.dying] {
            pod.output("ip", &["neigh", "flush", "all"])?;
            pod.output("ip", &["-6", "neigh", "flush", "all"])?;
        }
        Ok(())
    }
}

/// Where a pod's server is.
fn at(pod: &Pod, family: Family) -> SocketAddr {
    SocketAddr::new(pod.ip(family), APP)
}

/// A greeted connection with short timeouts.
fn open(place: &Place, to: SocketAddr) -> Result<TcpStream> {
    let stream = place.run(|| TcpStream::connect_timeout(&to, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut greeting = String::new();
    BufReader::with_capacity(1, stream.try_clone()?).read_line(&mut greeting)?;
    ensure!(greeting.ends_with('\n'), "greeted with {greeting:?}");
    Ok(stream)
}

fn echo(mut stream: &TcpStream, text: &[u8]) -> Result<()> {
    stream.write_all(text)?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == text, "other bytes came back");
    Ok(())
}

/// Sends frames again and again while the work is done: a kernel believes the first answer for a second.
fn while_sending<T>(forger: &Forger, frames: &[Vec<u8>], work: impl FnOnce() -> T) -> Result<T> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Acquire) {
                frames.iter().try_for_each(|frame| forger.send(frame))?;
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        let done = work();
        stop.store(true, Ordering::Release);
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(done)
    })
}

/// What the neighbour saw, and how many connections the others could make meanwhile.
#[derive(Debug)]
struct Spoofed {
    frames_with_payload: usize,
    conversations: usize,
}

/// The two talk while the neighbour says that it has their addresses; with `flap` it also sends frames from
/// their Ethernet addresses, so that the bridge looks for them there.
fn eavesdrop(world: &World, family: Family, flap: bool) -> Result<Spoofed> {
    let (client, server, neighbour) = (&world.client, &world.server, &world.neighbour);
    let to = at(server, family);
    world.warm(to)?;
    let forger = Forger::open(neighbour)?;
    let own = forge::hardware(neighbour, "eth0")?;
    let ends = [(client, forge::hardware(client, "eth0")?), (server, forge::hardware(server, "eth0")?)];
    let mut frames = vec![
        forge::claim(server.ip(family), own, (client.ip(family), ends[0].1)),
        forge::claim(client.ip(family), own, (server.ip(family), ends[1].1)),
    ];
    if flap {
        frames.extend(ends.iter().map(|(_, hardware)| forge::flap(*hardware)));
    }
    let capture = Capture::start(&neighbour.netns)?;
    let conversations = while_sending(&forger, &frames, || {
        let (began, mut conversations) = (Instant::now(), 0);
        while began.elapsed() < SPOOFING {
            let talk = || -> Result<()> {
                let stream = open(client, to)?;
                (0..20).try_for_each(|_| echo(&stream, MARKER))
            };
            conversations += usize::from(talk().is_ok());
            std::thread::sleep(Duration::from_millis(20));
        }
        conversations
    })?;
    let frames_with_payload = capture.stop()?.holding(MARKER);
    world.forget()?;
    Ok(Spoofed { frames_with_payload, conversations })
}

/// Which end receives what the neighbour forges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Server,
    Client,
}

/// The neighbour sends data as one end of an open connection, with the exact numbers: whether it is taken.
fn inject(world: &World, family: Family, victim: Victim, disguise: Disguise) -> Result<bool> {
    // Another text each time: what an earlier attack has brought the server to send, it repeats for a while.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let (client, server) = (&world.client, &world.server);
    let to = at(server, family);
    world.warm(to)?;
    let seen = Capture::start(if victim == Victim::Server { &server.netns } else { &client.netns })?;
    let stream = open(client, to)?;
    echo(&stream, b"hello")?;
    let from = SocketAddr::new(client.ip(family), stream.local_addr()?.port());
    let (source, destination) = if victim == Victim::Server { (from, to) } else { (to, from) };
    let last = forge::last_segment(&seen.stop()?, source, destination)?;
    let text = format!("<<< the neighbour says this, {:04} >>>", NUMBER.fetch_add(1, Ordering::Relaxed));
    let forged = Segment { payload: text.as_bytes(), ..last };
    let answers = Capture::start(&client.netns)?;
    let neighbour = &world.neighbour;
    let forger = Forger::open(neighbour)?;
    let hop = world.next_hop(if victim == Victim::Server { server } else { client })?;
    for frame in forged.frames(forge::hardware(neighbour, "eth0")?, hop, disguise) {
        forger.send(&frame)?;
    }
    if victim == Victim::Client {
        let mut got = [0; 16];
        stream.set_read_timeout(Some(ARRIVAL))?;
        if (&stream).read(&mut got).is_ok_and(|count| count > 0) {
            return Ok(true);
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        return echo(&stream, b"still here").map(|()| false).context("the connection goes on");
    }
    // The server echoes what it takes; the client's kernel refuses an answer to what it has not sent.
    std::thread::sleep(ARRIVAL);
    let taken = answers.stop()?.holding(text.as_bytes()) > 0;
    if !taken {
        echo(&stream, b"still here").context("the connection goes on")?;
    }
    Ok(taken)
}

/// The neighbour repeats the SYN of an open connection, with a sequence number of its own.
fn replay_handshake(world: &World, family: Family) -> Result<()> {
    let (client, server, neighbour) = (&world.client, &world.server, &world.neighbour);
    let to = at(server, family);
    world.warm(to)?;
    let stream = open(client, to)?;
    let from = SocketAddr::new(client.ip(family), stream.local_addr()?.port());
    let forger = Forger::open(neighbour)?;
    let syn = Segment { from, to, sequence: 0x1234_5678, acknowledged: 0, flags: SYN, payload: &[] };
    let hop = world.next_hop(server)?;
    for frame in syn.frames(forge::hardware(neighbour, "eth0")?, hop, Disguise::Plain) {
        forger.send(&frame)?;
    }
    std::thread::sleep(Duration::from_millis(100));
    echo(&stream, b"still here")
}

/// The neighbour takes the client's address and connects: whether the server talks to it.
fn pose_as_client(world: &World) -> Result<bool> {
    let (client, server, neighbour) = (&world.client, &world.server, &world.neighbour);
    let forger = Forger::open(neighbour)?;
    let own = forge::hardware(neighbour, "eth0")?;
    neighbour.netns.ip(&format!("addr add {}/32 dev eth0\n", client.v4))?;
    let victim = (server.v4.into(), forge::hardware(server, "eth0")?);
    let frames = [forge::claim(client.v4.into(), own, victim)];
    let (from, to) = (SocketAddr::new(client.v4.into(), 0), at(server, Family::V4));
    let pose = || -> Result<()> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        let patience = TimeVal::new(1, 500_000);
        setsockopt(&socket, sockopt::SendTimeout, &patience)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        let mut greeting = [0; 7];
        TcpStream::from(socket).read_exact(&mut greeting)?;
        ensure!(&greeting == b"shop/db", "greeted with {greeting:?}");
        Ok(())
    };
    let posed = neighbour.run(|| while_sending(&forger, &frames, || (0..3).any(|_| pose().is_ok())))??;
    neighbour.netns.ip(&format!("addr del {}/32 dev eth0\n", client.v4))?;
    world.forget()?;
    Ok(posed)
}

/// The neighbour takes the server's address and listens: how many connections it gets, and how many frames
/// with the client's data.
fn pose_as_server(world: &World) -> Result<(usize, usize)> {
    let (client, server, neighbour) = (&world.client, &world.server, &world.neighbour);
    let to = at(server, Family::V4);
    world.warm(to)?;
    let own = forge::hardware(neighbour, "eth0")?;
    neighbour.netns.ip(&format!("addr add {}/32 dev eth0\n", server.v4))?;
    let posing = Server::start(neighbour, "mallory", APP)?;
    let capture = Capture::start(&neighbour.netns)?;
    let forger = Forger::open(neighbour)?;
    let victim = (IpAddr::from(client.v4), forge::hardware(client, "eth0")?);
    while_sending(&forger, &[forge::claim(server.v4.into(), own, victim)], || {
        let began = Instant::now();
        while began.elapsed() < SPOOFING {
            if let Ok(stream) = open(client, to) {
                let _ = echo(&stream, MARKER);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    })?;
    let got = (posing.accepted(), capture.stop()?.holding(MARKER));
    neighbour.netns.ip(&format!("addr del {}/32 dev eth0\n", server.v4))?;
    world.forget()?;
    Ok(got)
}

/// A pod dies without a word while a connection to it is open, and the neighbour gets its address: how many
/// frames with the client's data it sees. Once for each world.
fn inherit_address(world: &World) -> Result<usize> {
    let (client, dying, neighbour) = (&world.client, &world.dying, &world.neighbour);
    let to = at(dying, Family::V4);
    world.warm(to)?;
    let mut stream = open(client, to)?;
    echo(&stream, b"hello")?;
    let node = &world.lab.nodes[0].place.netns;
    node.ip("link del pod2\n")?;
    if world.mesh && world.layout == Layout::RoutedIpv4 {
        // On an isolated link data follows the address. It is given away when the daemon has closed what is
        // open, as when a network plugin deletes a pod.
        ended(&mut stream)?;
    }
    let capture = Capture::start(&neighbour.netns)?;
    neighbour.netns.ip(&format!("addr add {}/32 dev eth0\n", dying.v4))?;
    if world.layout != Layout::Bridge {
        node.ip(&format!("route replace {}/32 dev pod3\n", dying.v4))?;
    }
    let victim = (IpAddr::from(client.v4), forge::hardware(client, "eth0")?);
    let claim = forge::claim(dying.v4.into(), forge::hardware(neighbour, "eth0")?, victim);
    while_sending(&Forger::open(neighbour)?, &[claim], || {
        let began = Instant::now();
        while began.elapsed() < SPOOFING {
            let _ = stream.write(MARKER);
            if let Ok(another) = open(client, to) {
                let _ = echo(&another, MARKER);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    })?;
    if world.mesh {
        ended(&mut stream)?;
    }
    capture.stop().map(|trace| trace.holding(MARKER))
}

/// Waits until a connection takes no more data.
fn ended(stream: &mut TcpStream) -> Result<()> {
    eventually("the open connection has ended", || match stream.write(MARKER) {
        Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Ok(()),
        other => bail!("it takes data: {other:?}"),
    })
}

fn link_kinds(world: &World, kind: &str, count: f64) -> Result<()> {
    eventually(&format!("{count} links are {kind}"), || {
        let now = world.lab.nodes[0].metrics()?.sum("ambit_direct_links", &[("kind", kind)]);
        ensure!((now - count).abs() < 0.5, "{now} are");
        Ok(())
    })
}

/// Open connections of the pair are listed as direct, with the kind of their links.
fn listed(world: &World, family: Family, kind: &str) -> Result<()> {
    let to = at(&world.server, family);
    world.warm(to)?;
    let _stream = open(&world.client, to)?;
    let open = world.lab.nodes[0].connections()?;
    let direct = open.as_array().into_iter().flatten().filter(|it| it["path"] == "direct");
    let kinds: Vec<_> = direct.map(|it| it["link"].clone()).collect();
    ensure!(!kinds.is_empty() && kinds.iter().all(|it| *it == kind), "{open}");
    Ok(())
}

#[test]
fn attacks_succeed_without_a_mesh() -> Result<()> {
    let world = World::new(Layout::Bridge, false)?;
    let mut table = Rows::new();
    for family in Family::BOTH {
        table.row(&format!("a spoofed neighbour's data is read, {family:?}"), || {
            let spoofed = eavesdrop(&world, family, false)?;
            ensure!(spoofed.frames_with_payload > 0 && spoofed.conversations > 0, "{spoofed:?}");
            Ok(())
        });
        for victim in [Victim::Server, Victim::Client] {
            for disguise in Disguise::ALL {
                table.row(&format!("forged data is taken, {family:?} {victim:?} {disguise:?}"), || {
                    ensure!(inject(&world, family, victim, disguise)?, "it is not");
                    Ok(())
                });
            }
        }
    }
    table.row("the neighbour is taken for the client", || {
        ensure!(pose_as_client(&world)?, "it is not");
        Ok(())
    });
    table.row("the neighbour is taken for the server", || {
        let (accepted, frames) = pose_as_server(&world)?;
        ensure!(accepted > 0 && frames > 0, "{accepted} connections, {frames} frames");
        Ok(())
    });
    table.row("a dead pod's heir reads what was for it", || {
        ensure!(inherit_address(&world)? > 0, "it does not");
        Ok(())
    });
    table.finish();
    world.lab.finish()
}

#[test]
fn neighbour_on_the_bridge_reads_nothing_and_is_nobody() -> Result<()> {
    let world = World::new(Layout::Bridge, true)?;
    let mut table = Rows::new();
    table.row("the links are shared", || link_kinds(&world, "shared", 3.0));
    for family in Family::BOTH {
        table.row(&format!("open connections are listed, {family:?}"), || listed(&world, family, "shared"));
        table.row(&format!("a spoofing neighbour reads nothing and breaks nothing, {family:?}"), || {
            let attack = || eavesdrop(&world, family, false);
            let spoofed = world.counted("link_neighbour_forged", attack)?;
            ensure!(spoofed.frames_with_payload == 0 && spoofed.conversations > 0, "{spoofed:?}");
            Ok(())
        });
        table.row(&format!("one that moves addresses in the bridge reads nothing, {family:?}"), || {
            let moves = || -> Result<f64> {
                Ok(world.lab.nodes[0].metrics()?.sum("ambit_link_address_moves_total", &[]))
            };
            let before = moves()?;
            let spoofed = eavesdrop(&world, family, true)?;
            ensure!(spoofed.frames_with_payload == 0, "{spoofed:?}");
            ensure!(moves()? > before, "the moves are not counted");
            Ok(())
        });
        for victim in [Victim::Server, Victim::Client] {
            for disguise in Disguise::ALL {
                table.row(&format!("forged data is dropped, {family:?} {victim:?} {disguise:?}"), || {
                    let plain = disguise == Disguise::Plain;
                    let reason = if plain { "link_packet_forged" } else { "link_packet_hidden" };
                    let taken = world.counted(reason, || inject(&world, family, victim, disguise))?;
                    ensure!(!taken, "it is taken");
                    Ok(())
                });
            }
        }
        table.row(&format!("a replayed handshake is dropped, {family:?}"), || {
            world.counted("link_handshake_forged", || replay_handshake(&world, family))
        });
    }
    table.row("the neighbour is not taken for the client", || {
        ensure!(!pose_as_client(&world)?, "it is");
        Ok(())
    });
    table.row("the neighbour is not taken for the server", || {
        let (accepted, frames) = pose_as_server(&world)?;
        ensure!(accepted == 0 && frames == 0, "{accepted} connections, {frames} frames");
        Ok(())
    });
    table.row("a dead pod's heir reads nothing", || {
        let frames = inherit_address(&world)?;
        ensure!(frames == 0, "{frames} frames");
        link_kinds(&world, "unknown", 1.0)
    });
    table.finish();
    world.lab.finish()
}

/// The node routes between the pods: they share no link. IPv6 has no reverse-path filter, so with it the
/// links count as shared.
#[test]
fn neighbour_on_a_routed_link_reads_nothing_and_is_nobody() -> Result<()> {
    for (layout, kind) in [(Layout::RoutedIpv4, "isolated"), (Layout::Routed, "shared")] {
        let world = World::new(layout, true)?;
        let mut table = Rows::new();
        table.row(&format!("{layout:?}: the links are {kind}"), || link_kinds(&world, kind, 3.0));
        for family in world.families() {
            table.row(&format!("{layout:?}: open connections are listed, {family:?}"), || {
                listed(&world, *family, kind)
            });
            table.row(&format!("{layout:?}: a spoofing neighbour reads nothing, {family:?}"), || {
                let spoofed = eavesdrop(&world, *family, false)?;
                ensure!(spoofed.frames_with_payload == 0 && spoofed.conversations > 0, "{spoofed:?}");
                Ok(())
            });
            for victim in [Victim::Server, Victim::Client] {
                table.row(&format!("{layout:?}: forged data is dropped, {family:?} {victim:?}"), || {
                    ensure!(!inject(&world, *family, victim, Disguise::Plain)?, "it is taken");
                    Ok(())
                });
            }
        }
        table.row(&format!("{layout:?}: a dead pod's heir reads nothing"), || {
            let frames = inherit_address(&world)?;
            ensure!(frames == 0, "{frames} frames");
            Ok(())
        });
        table.finish();
        world.lab.finish()?;
    }
    Ok(())
}

/// What the rows above rest on: without the programs, forged IPv6 passes the node's routes.
#[test]
fn forged_ipv6_passes_routed_links_without_a_mesh() -> Result<()> {
    let world = World::new(Layout::Routed, false)?;
    ensure!(inject(&world, Family::V6, Victim::Server, Disguise::Plain)?, "it does not");
    ensure!(!inject(&world, Family::V4, Victim::Server, Disguise::Plain)?, "the reverse path is not checked");
    world.lab.finish()
}
