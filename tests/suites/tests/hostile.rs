//! Hostile peers: floods, stalls, compression bombs and hoarded connections, with and without a certificate
//! of the mesh, against one pod of a node.
//!
//! While each of them runs, another pod of the same node must be served without a failure, and the daemons'
//! memory must stay within [`BOUND`]; when it is over, descriptors and memory come back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ambit_harness::{Builder, Lab, NamespaceSpec, Place, PodSpec, eventually, within};
use ambit_suites::hbone::{Authority, Certificate, PORT, Validity, handshake};
use ambit_suites::{Load, Rows, Server, ask};
use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Where honest servers listen.
const APP: u16 = 7000;
/// Where an application listens that never accepts.
const DEAF: u16 = 7001;
/// How much more memory a daemon may take while it is attacked, in KiB: 128 connections of one address with
/// 100 streams of a 16 KiB head each would be 200 MiB if heads were kept, and they are not.
const BOUND: u64 = 96 << 10;
/// How much of it the allocator may keep afterwards.
const KEPT: u64 = 64 << 10;
/// How long an attack goes on.
const SPAN: Duration = Duration::from_secs(4);

const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/evil";

/// HTTP/2 frames by hand: h2 sends no invalid ones.
mod frames {
    pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RESET: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
    pub(crate) const END_HEADERS: u8 = 4;

    pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// A literal field, neither indexed nor compressed.
    pub(crate) fn field(name: &str, value: &[u8]) -> Vec<u8> {
        let mut block = vec![0];
        integer(&mut block, name.len());
        block.extend(name.as_bytes());
        integer(&mut block, value.len());
        block.extend(value);
        block
    }

    /// With a prefix of seven bits.
    pub(crate) fn integer(block: &mut Vec<u8>, value: usize) {
        let Some(mut rest) = value.checked_sub(127) else {
            block.push(u8::try_from(value).expect("below 127"));
            return;
        };
        block.push(127);
        while rest >= 128 {
            block.push(u8::try_from(rest % 128 + 128).expect("one byte"));
            rest /= 128;
        }
        block.push(u8::try_from(rest).expect("below 128"));
    }

    /// A request for a tunnel.
    pub(crate) fn connect(authority: &str) -> Vec<u8> {
        [field(":method", b"CONNECT"), field(":authority", authority.as_bytes())].concat()
    }

    /// The preface and settings with which every connection begins.
    pub(crate) fn hello() -> Vec<u8> {
        [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
    }
}

use frames::{frame, hello};

/// What an attacker has: its place, its certificate, and its target.
struct Attack<'a> {
    from: &'a Place,
    certificate: &'a Certificate,
    peer: SocketAddr,
    authority: String,
    deaf: String,
    over: &'a AtomicBool,
}

impl Attack<'_> {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Acquire)
    }

    /// Runs an attack's tasks inside the attacker's pod.
    fn run<F: Future<Output = Result<()>>>(&self, work: impl FnOnce() -> F + Send) -> Result<()> {
        self.from.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        })?
    }

    /// A connection whose certificate was accepted.
    async fn certified(&self) -> Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        handshake(self.peer, Some(self.certificate)).await
    }

    /// Sends `first`, and then `again` for as long as the peer accepts it, on one connection after the other.
    /// Answers are read or left unread.
    async fn flood(&self, first: Vec<u8>, reads: bool, mut again: impl FnMut(u32) -> Vec<u8>) -> Result<()> {
        let (mut connections, mut bytes, mut number) = (0, 0_usize, 0);
        while self.goes_on() {
            let Ok(tls) = self.certified().await else { continue };
            connections += 1;
            let (mut reader, mut writer) = tokio::io::split(tls);
            let says = async {
                number = 0;
                writer.write_all(&first).await?;
                while self.goes_on() {
                    let piece: Vec<u8> = (0..64)
                        .flat_map(|_| {
                            number += 1;
                            again(number)
                        })
                        .collect();
                    for chunk in piece.chunks(16 << 10) {
                        // A peer that accepts nothing more has stopped the flood.
                        let Ok(wrote) =
                            tokio::time::timeout(Duration::from_secs(1), writer.write_all(chunk)).await
                        else {
                            return Ok(());
                        };
                        wrote?;
                        bytes += chunk.len();
                    }
                    writer.flush().await?;
                }
                std::io::Result::Ok(())
            };
            let hears = async {
                let mut buffer = vec![0; 64 << 10];
                while reads && reader.read(&mut buffer).await? > 0 {}
                if !reads {
                    std::future::pending::<()>().await;
                }
                std::io::Result::Ok(())
            };
            // However it ends: that is the daemon's choice.
            tokio::select! {
                _ended = says => {}
                _ended = hears => {}
            }
        }
        println!("  {connections} connections, {} KiB", bytes >> 10);
        ensure!(connections > 0 && bytes > 0, "the attack did not take place");
        Ok(())
    }

    /// Opens as many as it can of what `open` makes, up to `most`, and holds them until it is over.
    async fn hoard<T>(&self, most: usize, open: impl AsyncFn() -> Result<T>) -> Result<()> {
        let (mut held, mut failed) = (Vec::new(), 0);
        while self.goes_on() && held.len() < most {
            if let Ok(Ok(one)) = tokio::time::timeout(Duration::from_secs(2), open()).await {
                held.push(one);
            } else {
                // Refused; what it was for goes on.
                failed += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        println!("  {} held, {failed} refused", held.len());
        ensure!(!held.is_empty(), "the attack did not take place");
        while self.goes_on() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

type Row = (&'static str, fn(&Attack<'_>) -> Result<()>);

const ROWS: &[Row] = &[
    ("SETTINGS flood", |a| {
        a.run(move || a.flood(hello(), false, move |_| frame(frames::SETTINGS, 0, 0, &[])))
    }),
    ("PING flood, answers unread", |a| {
        a.run(move || a.flood(hello(), false, move |_| frame(frames::PING, 0, 0, &[7; 8])))
    }),
    ("PING flood, answers read", |a| {
        a.run(move || a.flood(hello(), true, move |_| frame(frames::PING, 0, 0, &[7; 8])))
    }),
    ("empty DATA flood", |a| {
        let open = frame(frames::HEADERS, frames::END_HEADERS, 1, &frames::connect(&a.authority));
        a.run(move || a.flood([hello(), open].concat(), true, move |_| frame(frames::DATA, 0, 1, &[])))
    }),
    ("WINDOW_UPDATE flood", |a| {
        a.run(move || a.flood(hello(), true, move |_| frame(frames::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])))
    }),
    ("CONTINUATION flood", |a| {
        let open = frame(frames::HEADERS, 0, 1, &frames::connect(&a.authority));
        let more = frames::field("x", b"y");
        a.run(move || {
            a.flood([hello(), open].concat(), true, move |_| frame(frames::CONTINUATION, 0, 1, &more))
        })
    }),
    ("rapid reset", |a| {
        let head = frames::connect(&a.deaf);
        a.run(move || {
            a.flood(hello(), true, move |number| {
                let stream = 2 * number - 1;
                let cancel = frame(frames::RESET, 0, stream, &[0, 0, 0, 8]);
                [frame(frames::HEADERS, frames::END_HEADERS, stream, &head), cancel].concat()
            })
        })
    }),
    ("a megabyte of head", |a| {
        let big = frames::field("x-big", &[b'x'; 16_000]);
        let head = frames::connect(&a.authority);
        a.run(move || {
            a.flood(hello(), true, move |number| {
                let stream = 2 * number - 1;
                let mut block = frame(frames::HEADERS, 0, stream, &head);
                (0..64).for_each(|_| block.extend(frame(frames::CONTINUATION, 0, stream, &big)));
                block.extend(frame(frames::CONTINUATION, frames::END_HEADERS, stream, &[]));
                block
            })
        })
    }),
    ("header bomb", |a| {
        // One entry of the table, sent once, then named by one byte (the first dynamic entry, 62) 12,000
        // times: 47 MB of head in 16 KB.
        let mut entry = frames::field("bomb", &[b'x'; 3900]);
        entry[0] = 0x40;
        let head = [frames::connect(&a.authority), entry, vec![0xbe; 12_000]].concat();
        a.run(move || {
            a.flood(hello(), true, move |number| {
                frame(frames::HEADERS, frames::END_HEADERS, 2 * number - 1, &head)
            })
        })
    }),
    ("2,000 silent connections, no certificate", |a| {
        a.run(move || a.hoard(2000, async || Ok(tokio::net::TcpStream::connect(a.peer).await?)))
    }),
    ("2,000 handshakes that stop after some bytes", |a| {
        a.run(move || {
            a.hoard(2000, async || {
                let mut socket = tokio::net::TcpStream::connect(a.peer).await?;
                socket.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await?;
                Ok(socket)
            })
        })
    }),
    ("certified connections that never send a preface", |a| {
        a.run(move || a.hoard(1000, async || a.certified().await))
    }),
    ("as many certified connections as it gets", |a| {
        a.run(move || {
            a.hoard(1000, async || {
                let mut tls = a.certified().await?;
                tls.write_all(&hello()).await?;
                tls.flush().await?;
                // Settings come from a peer that has accepted the connection.
                tls.read_exact(&mut [0; 9]).await?;
                Ok(tls)
            })
        })
    }),
    ("10,000 tunnels to an application that never accepts", |a| {
        a.run(move || {
            a.hoard(100, async || {
                let mut tls = a.certified().await?;
                let head = frames::connect(&a.deaf);
                let opens = (0..100)
                    .flat_map(|number| frame(frames::HEADERS, frames::END_HEADERS, 2 * number + 1, &head));
                tls.write_all(&hello()).await?;
                tls.write_all(&opens.collect::<Vec<u8>>()).await?;
                tls.flush().await?;
                tls.read_exact(&mut [0; 9]).await?;
                Ok(tls)
            })
        })
    }),
];

fn builder() -> Builder {
    Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/evil"))
        .pod(PodSpec::new("shop/db").node(1))
        .pod(PodSpec::new("shop/victim").node(1))
        .pod(PodSpec::new("legacy/old"))
}

/// An attacker needs descriptors too.
fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("failed to raise the limit of descriptors")
}

/// What a daemon holds.
#[derive(Clone, Copy, Debug)]
struct Holds {
    memory: u64,
    descriptors: u64,
}

fn holds(lab: &Lab) -> Result<Vec<Holds>> {
    let of = |daemon: &ambit_harness::Daemon| {
        anyhow::Ok(Holds { memory: daemon.memory()?, descriptors: daemon.descriptors()? })
    };
    lab.nodes.iter().map(|node| of(&node.ztunnel)).collect()
}

/// Runs an attack for a while: how other pods are served meanwhile, and what is left when it is over.
fn withstand(lab: &Lab, attack: impl FnOnce(&AtomicBool) -> Result<()> + Send) -> Result<()> {
    let (web, db) = (lab.pod("shop/web"), SocketAddr::new(lab.pod("shop/db").v4.into(), APP));
    ask(&web, db).context("before the attack")?;
    let before = holds(lab)?;
    let over = AtomicBool::new(false);
    let (mut most, mut times) = (before.clone(), Vec::new());
    let lasting = Load::start(&web, &[db]);
    std::thread::scope(|scope| {
        let attacking = scope.spawn(|| attack(&over));
        let watched = (|| {
            let began = Instant::now();
            while began.elapsed() < SPAN || times.len() < 5 {
                let asked = Instant::now();
                ask(&web, db).context("another pod's connection during the attack")?;
                times.push(asked.elapsed());
                for (most, now) in most.iter_mut().zip(holds(lab)?) {
                    most.memory = most.memory.max(now.memory);
                    most.descriptors = most.descriptors.max(now.descriptors);
                }
            }
            anyhow::Ok(())
        })();
        over.store(true, Ordering::Release);
        let attacked = attacking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        watched.and(attacked.context("the attacker"))
    })?;
    lasting.stop().flawless().context("another pod's lasting connections")?;
    times.sort_unstable();
    println!(
        "  {} honest connections, median {:?}, longest {:?}",
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    for (before, most) in before.iter().zip(&most) {
        println!(
            "  memory {} KiB, at most {} KiB; descriptors {}, at most {}",
            before.memory, most.memory, before.descriptors, most.descriptors
        );
        ensure!(most.memory <= before.memory + BOUND, "memory went from {before:?} to {most:?}");
    }
    within(AFTERWARDS, "everything comes back", || {
        for (before, now) in before.iter().zip(holds(lab)?) {
            ensure!(now.descriptors <= before.descriptors + 16, "from {before:?} to {now:?}");
            ensure!(now.memory <= before.memory + KEPT, "from {before:?} to {now:?}");
        }
        Ok(())
    })?;
    ask(&web, db).context("after the attack").map(drop)
}

/// How long the daemons may keep what an attack made them take: unused connections of tunnels stay
/// for a minute.
const AFTERWARDS: Duration = Duration::from_mins(2);

/// Takes connections into its queue of two and never out of it.
fn deaf(place: &Place) -> Result<TcpListener> {
    let listener = place.run(|| {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, DEAF))?;
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1)?)?;
        std::io::Result::Ok(listener)
    })?;
    listener.context("failed to listen")
}

#[test]
fn attack_on_one_pod_leaves_other_pods_reachable() -> Result<()> {
    raise_descriptor_limit()?;
    let lab = builder().start()?;
    let _servers = [
        Server::start(&lab.pod("shop/db"), "db", APP)?,
        Server::start(&lab.pod("shop/victim"), "victim", APP)?,
    ];
    let victim = lab.pod("shop/victim");
    let _deaf = deaf(&victim)?;
    let certificate = Authority::of(&lab)?.issue(Some(IDENTITY), Validity::Now)?;
    let (from, peer) = (lab.pod("legacy/old"), SocketAddr::new(victim.v4.into(), PORT));
    let mut table = Rows::new();
    for (name, attack) in ROWS {
        println!("{name}");
        table.row(name, || {
            withstand(&lab, |over| {
                let authority = SocketAddr::new(victim.v4.into(), APP).to_string();
                let deaf = SocketAddr::new(victim.v4.into(), DEAF).to_string();
                attack(&Attack { from: &from, certificate: &certificate, peer, authority, deaf, over })
            })
        });
    }
    table.row("the daemon counts what it refused", || {
        let refused = lab.nodes[1].records_since(0);
        for reason in ["peer_connections_exhausted", "handshakes_exhausted"] {
            let found = refused.iter().any(|record| record.to_string().contains(reason));
            ensure!(found, "no record says {reason}");
        }
        Ok(())
    });
    table.row("the victim is served again", || {
        let to = SocketAddr::new(victim.v4.into(), APP);
        eventually("it answers", || ask(&lab.pod("shop/web"), to).map(drop))
    });
    table.finish();
    lab.finish()
}

/// Opens connections from a pod, as many as it gets, and holds them.
fn hoard_from(place: &Place, to: &[SocketAddr], over: &AtomicBool) -> Result<()> {
    let (mut most, mut failed) = (0, 0);
    place.run(|| {
        let mut held = Vec::new();
        while !over.load(Ordering::Acquire) {
            for to in to {
                match TcpStream::connect_timeout(to, Duration::from_secs(1)) {
                    Ok(stream) => held.push(stream),
                    Err(_) => failed += 1,
                }
            }
            most = most.max(held.len());
            // Our own descriptors are not what is tested.
            if held.len() > 8000 {
                held.clear();
            }
        }
    })?;
    println!("  {most} held, {failed} refused");
    ensure!(most + failed > 100, "the attack did not take place");
    Ok(())
}

#[test]
fn client_that_hoards_connections_gets_only_its_share() -> Result<()> {
    raise_descriptor_limit()?;
    let lab = builder().start()?;
    let _servers = [Server::start(&lab.pod("shop/db"), "db", APP)?];
    let (evil, victim) = (lab.pod("shop/evil"), lab.pod("shop/victim"));
    let _deaf = deaf(&victim)?;
    let own = own_listeners(&evil)?;
    ensure!(!own.is_empty(), "the daemon listens in the pod");
    let mut table = Rows::new();
    table.row("captured connections to an application that never accepts", || {
        withstand(&lab, |over| hoard_from(&evil, &[SocketAddr::new(victim.v4.into(), DEAF)], over))
    });
    table.row("the daemon's own listeners in the pod", || {
        withstand(&lab, |over| hoard_from(&evil, &own, over))
    });
    table.finish();
    lab.finish()
}

/// Where the daemon listens in a pod.
fn own_listeners(pod: &Place) -> Result<Vec<SocketAddr>> {
    let text = pod.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
    let mut found = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.get(3) == Some(&"0A") {
            let (_, port) = fields[1].rsplit_once(':').context("no port")?;
            let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
            found.push(SocketAddr::new(loopback, u16::from_str_radix(port, 16)?));
        }
    }
    Ok(found)
}
