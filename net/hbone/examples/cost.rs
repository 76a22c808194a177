//! What a tunnel costs, next to the same traffic over plain TCP: `cargo run --release -p ambit-hbone
//! --example cost [SECONDS [ROW]]`. The relay of a TCP connection and a tunnel is measured next to the relay
//! of any streams, which could do the same work.
//!
//! As in the project's benchmark the client's side runs on CPU 0 and the server's on CPU 1, each proxy on one
//! thread; here all four are threads of one process and the sockets are loopback's. Meant for profiling, and
//! for comparing one state of this crate with another on the same machine.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ambit_core::model::{Identity, WorkloadUid};
use ambit_hbone::client::{self, Connection};
use ambit_hbone::memory::Account;
use ambit_hbone::pool::{Dial, Key, Pool};
use ambit_hbone::relay::{self, Traffic};
use ambit_hbone::request::{Authority, ConnectRequest};
use ambit_hbone::server::{Clients, Incoming, Server, Settings};
use ambit_hbone::tls::{self, WorkloadCertificate};
use ambit_hbone::{Error, Http2, Tunnel};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// Takes a figure of an application behind an address.
type Measure = fn(SocketAddr, Duration) -> f64;

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3);
    let only = std::env::args().nth(2);
    let span = Duration::from_secs(seconds);
    let (bulk, echo) = (applications(Application::Sink), applications(Application::Echo));
    let (client, server) = certificates();
    let relayed = |relay| outbound(&client, inbound(server.clone(), relay), relay);
    let (tunnels, streams) = (relayed(Relay::Tunnel), relayed(Relay::Stream));
    let rows: [(&str, &str, Measure, SocketAddr); 4] = [
        ("bulk", "Gbit/s", throughput, bulk),
        ("round trip of 64 bytes", "µs", round_trip, echo),
        ("requests, 16 connections", "1/s", requests, echo),
        ("new connections", "1/s", connections, echo),
    ];
    println!(
        "{:<26}{:>12}{:>12}{:>8}{:>12}{:>8}  {:<7}{:>28}",
        "", "plain", "tunnel", "ratio", "any stream", "ratio", "", "CPU time for the same work"
    );
    for (name, unit, measure, application) in rows {
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let paths = [application, tunnels(application), streams(application)];
        let [(plain, plain_cost), (tunnel, tunnel_cost), (stream, stream_cost)] =
            medians(&paths.map(|path| move || measure(path, span)));
        // A round trip's figure is time, the others' are work done.
        let work = |relayed: f64| if unit == "µs" { plain / relayed } else { relayed / plain };
        println!(
            "{name:<26}{plain:>12.2}{tunnel:>12.2}{:>8.2}{stream:>12.2}{:>8.2}  \
             {unit:<7}{:>14.2} x,{:>9.2} x",
            tunnel / plain,
            stream / plain,
            tunnel_cost / plain_cost / work(tunnel),
            stream_cost / plain_cost / work(stream)
        );
    }
    if only.is_none_or(|only| only == "memory") {
        for (name, relayed) in [("tunnel", tunnels(echo)), ("any stream", streams(echo))] {
            let held = memory(relayed);
            println!("idle, both proxies, {name:<12} {held:>10.0} bytes");
        }
    }
}

/// Of each the middle one of three, taken in turns, with the processor's time that it took.
fn medians<const N: usize>(measures: &[impl Fn() -> f64; N]) -> [(f64, f64); N] {
    let timed = |measure: &dyn Fn() -> f64| {
        let before = processor_time();
        (measure(), processor_time() - before)
    };
    let rounds: Vec<[(f64, f64); N]> =
        (0..3).map(|_| std::array::from_fn(|path| timed(&measures[path]))).collect();
    std::array::from_fn(|path| {
        let mut all: Vec<_> = rounds.iter().map(|round| round[path]).collect();
        all.sort_by(|one, other| one.0.total_cmp(&other.0));
        all[1]
    })
}

/// Seconds, of the whole process.
fn processor_time() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("figures");
    [usage.user_time(), usage.system_time()]
        .map(|time| {
            Duration::from_micros(time.num_microseconds().try_into().expect("not negative")).as_secs_f64()
        })
        .iter()
        .sum()
}

/// Runs on one CPU from now on.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu % thread::available_parallelism().map_or(1, usize::from)).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &set).expect("pinning");
}

#[derive(Clone, Copy)]
enum Application {
    Sink,
    Echo,
}

/// Starts an application on the server's side.
fn applications(kind: Application) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        pin(1);
        for socket in listener.incoming() {
            thread::Builder::new()
                .stack_size(128 << 10)
                .spawn(move || {
                    let mut socket = socket.expect("a connection");
                    socket.set_nodelay(true).expect("no delay");
                    let mut buffer = vec![0; if matches!(kind, Application::Sink) { 256 << 10 } else { 256 }];
                    while let Ok(count @ 1..) = socket.read(&mut buffer) {
                        let answer = match kind {
                            Application::Sink => &[][..],
                            Application::Echo => &buffer[..count],
                        };
                        if socket.write_all(answer).is_err() {
                            break;
                        }
                    }
                })
                .expect("a thread");
        }
    });
    address
}

fn certificates() -> (WorkloadCertificate, WorkloadCertificate) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
    let issue = |name: &str| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.try_into().expect("ASCII"))];
        let leaf = params.signed_by(&key, &ca).expect("a certificate");
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let (identity, chain) = (name.parse().expect("an identity"), [leaf.pem(), ca.pem()]);
        let now = std::time::SystemTime::now();
        WorkloadCertificate::new(identity, &chain, key, now, now).expect("a chain")
    };
    (issue(CLIENT), issue(SERVER))
}

/// A thread with a runtime of its own, on a CPU.
fn proxy<F: Future<Output = ()> + Send + 'static>(cpu: usize, run: impl FnOnce() -> F + Send + 'static) {
    let name = format!("proxy{cpu}");
    let run = move || {
        pin(cpu);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async { tokio::spawn(run()).await.expect("a proxy") });
    };
    thread::Builder::new().name(name).spawn(run).expect("a thread");
}

fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

/// Which relay carries the bytes.
#[derive(Clone, Copy)]
enum Relay {
    Tunnel,
    Stream,
}

impl Relay {
    async fn carry(self, socket: tokio::net::TcpStream, tunnel: Tunnel) {
        let traffic = Traffic::default();
        match self {
            Self::Tunnel => relay::tunnel(socket, tunnel, &traffic).await,
            Self::Stream => relay::socket(socket, tunnel, &traffic).await,
        };
    }
}

fn inbound(certificate: WorkloadCertificate, relay: Relay) -> SocketAddr {
    let (listener, address) = bind();
    proxy(1, move || async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let (server, config) = (Server::new(Settings::default()), tls::server_config(&certificate));
        let clients = Clients::default();
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            let (server, clients, config) = (server.clone(), clients.clone(), config.clone());
            tokio::spawn(async move {
                let forward = |incoming| forward(incoming, relay);
                let end = server.serve(&clients, socket, config, std::future::pending(), forward).await;
                end.expect("a clean end");
            });
        }
    });
    address
}

async fn forward(incoming: Incoming, relay: Relay) {
    let Authority::Address(address) = incoming.request.authority else { panic!("an address") };
    let socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let tunnel = incoming.responder.accept().expect("a client");
    relay.carry(socket, tunnel).await;
}

struct Dialer(WorkloadCertificate);

impl Dial for Dialer {
    type Error = Error;

    async fn dial(&self, key: &Key) -> Result<Connection, Error> {
        let socket = tokio::net::TcpStream::connect(key.address).await.expect("a connection");
        client::connect(
            socket,
            tls::client_config(&self.0, &key.peers),
            &Http2::default(),
            &Account::default(),
        )
        .await
    }
}

/// For each application an address on the client's side that leads to it through a tunnel.
fn outbound(
    certificate: &WorkloadCertificate,
    inbound: SocketAddr,
    relay: Relay,
) -> impl Fn(SocketAddr) -> SocketAddr + use<> {
    let certificate = certificate.clone();
    move |application| {
        let (listener, address) = bind();
        let certificate = certificate.clone();
        proxy(0, move || async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let peers: Arc<[Identity]> = [SERVER.parse().expect("an identity")].into();
            let identity = certificate.identity.clone();
            let key = Key { source: WorkloadUid("web".into()), identity, peers, address: inbound };
            let (pool, key) = (Pool::new(Dialer(certificate), Duration::from_secs(10)), Arc::new(key));
            loop {
                let (socket, _) = listener.accept().await.expect("a connection");
                let (pool, key) = (pool.clone(), key.clone());
                tokio::spawn(async move {
                    let opening = Box::pin(async { pool.open(&key, &ConnectRequest::to(application)).await });
                    let tunnel = opening.await.expect("a tunnel");
                    relay.carry(socket, tunnel).await;
                });
            }
        });
        address
    }
}

/// Runs on the client's side.
fn on_client<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                pin(0);
                run()
            })
            .join()
            .expect("a client")
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn throughput(address: SocketAddr, span: Duration) -> f64 {
    on_client(|| {
        let mut socket = TcpStream::connect(address).expect("a connection");
        let piece = vec![0; 256 << 10];
        let (began, mut sent) = (Instant::now(), 0_u64);
        while began.elapsed() < span {
            socket.write_all(&piece).expect("room");
            sent += piece.len() as u64;
        }
        sent as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9
    })
}

fn exchange(socket: &mut TcpStream) {
    let mut piece = [7; 64];
    socket.write_all(&piece).expect("room");
    socket.read_exact(&mut piece).expect("an answer");
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).expect("a connection");
    socket.set_nodelay(true).expect("no delay");
    socket
}

fn round_trip(address: SocketAddr, span: Duration) -> f64 {
    on_client(|| {
        let mut socket = connect(address);
        let (began, mut count) = (Instant::now(), 0_u32);
        while began.elapsed() < span {
            exchange(&mut socket);
            count += 1;
        }
        began.elapsed().as_secs_f64() * 1e6 / f64::from(count)
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn requests(address: SocketAddr, span: Duration) -> f64 {
    let count = AtomicU64::new(0);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                pin(0);
                let mut socket = connect(address);
                while began.elapsed() < span {
                    exchange(&mut socket);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    count.into_inner() as f64 / began.elapsed().as_secs_f64()
}

fn connections(address: SocketAddr, span: Duration) -> f64 {
    on_client(|| {
        let (began, mut count) = (Instant::now(), 0_u32);
        while began.elapsed() < span {
            let mut socket = connect(address);
            exchange(&mut socket);
            count += 1;
        }
        f64::from(count) / began.elapsed().as_secs_f64()
    })
}

/// Resident memory that a thousand idle tunnels add, less what the thousand threads of the application do.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn memory(address: SocketAddr) -> f64 {
    const COUNT: u32 = 1500;
    let mut kept = vec![connect(address)];
    exchange(&mut kept[0]);
    let before = resident();
    for _ in 0..COUNT {
        let mut socket = connect(address);
        exchange(&mut socket);
        kept.push(socket);
    }
    thread::sleep(Duration::from_secs(1));
    let with_tunnels = resident() - before;
    let threads = {
        let direct = applications(Application::Echo);
        let before = resident();
        let _plain: Vec<_> = (0..COUNT)
            .map(|_| {
                let mut socket = connect(direct);
                exchange(&mut socket);
                socket
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        resident() - before
    };
    (with_tunnels as f64 - threads as f64) / f64::from(COUNT)
}

/// Bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
