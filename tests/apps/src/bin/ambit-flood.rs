//! Floods, by an unprivileged program with as many descriptors as it may have.
//!
//! `pour` listens and writes to every connection without end; `hold` opens connections and never reads them;
//! `listen` opens listeners; `knock` connects again and again to what refuses it. Each prints one line when
//! it has what was asked for, and goes on until it is killed, or for its time.

use std::io::{ErrorKind, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    flood: Flood,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Flood {
    /// Writes to every connection, which nobody may read.
    Pour { port: u16 },
    /// Opens connections and reads nothing.
    Hold { to: SocketAddr, count: usize },
    /// Opens listeners on free ports.
    Listen { count: usize },
    /// Connects as often as it can.
    Knock { to: SocketAddr, seconds: u64 },
}

fn main() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    match Arguments::parse().flood {
        Flood::Pour { port } => pour(port),
        Flood::Hold { to, count } => hold(to, count),
        Flood::Listen { count } => listen(count),
        Flood::Knock { to, seconds } => knock(to, Duration::from_secs(seconds)),
    }
}

/// Tells that it is there, and keeps what it holds until it is killed.
fn lasts<T>(held: &T, line: &str) -> Result<()> {
    println!("{line}");
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
        std::hint::black_box(held);
    }
}

fn pour(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listening")?;
    let connections: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let poured = Arc::clone(&connections);
    std::thread::spawn(move || {
        let bytes = vec![b'x'; 64 << 10];
        loop {
            let mut wrote = false;
            poured.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|stream| {
                match stream.write(&bytes) {
                    Ok(count) => {
                        wrote |= count > 0;
                        true
                    }
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                }
            });
            if !wrote {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    println!("ready");
    std::io::stdout().flush()?;
    for stream in listener.incoming().flatten() {
        stream.set_nonblocking(true)?;
        // Over loopback the kernel lets a socket send 2.5 MB unread, which is this program's memory and not
        // what is tested: a thousand of them put the whole machine's TCP under pressure.
        socket2::SockRef::from(&stream).set_send_buffer_size(32 << 10)?;
        connections.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }
    Ok(())
}

fn hold(to: SocketAddr, count: usize) -> Result<()> {
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..count {
        match TcpStream::connect_timeout(&to, Duration::from_secs(10)) {
            Ok(stream) => held.push(stream),
            Err(_) => refused += 1,
        }
    }
    let line = format!("held {} refused {refused}", held.len());
    lasts(&held, &line)
}

fn listen(count: usize) -> Result<()> {
    let listeners: Vec<TcpListener> =
        (0..count).map_while(|_| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()).collect();
    let line = format!("listening {}", listeners.len());
    lasts(&listeners, &line)
}

fn knock(to: SocketAddr, time: Duration) -> Result<()> {
    let (began, mut refused, mut other) = (Instant::now(), 0_u64, 0_u64);
    while began.elapsed() < time {
        match TcpStream::connect_timeout(&to, Duration::from_secs(1)) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused += 1,
            _ => other += 1,
        }
    }
    println!("refused {refused} other {other}");
    std::io::stdout().flush()?;
    Ok(())
}
