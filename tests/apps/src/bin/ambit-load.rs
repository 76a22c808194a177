//! Constant load on an HTTP address, a new connection for each request: what a client sees while things
//! change around it.
//!
//! `ambit-load shop.default:80 --rate 100 --until /tmp/stop` asks 100 times a second until the file exists,
//! then prints one line of JSON: how many requests were answered, how many were not and why, and the slowest.
//! `ambit-load --hold host:port` opens one connection and asks over it once a second, for as long as it
//! lasts.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::json;

/// Asks again and again, and counts.
#[derive(Clone, Debug, Parser)]
struct Load {
    /// `host:port` to ask.
    #[arg(required_unless_present_any = ["touch", "untouch"], default_value = "")]
    target: String,
    /// Does nothing but make this file: how a load that waits for it is ended where there is no shell.
    #[arg(long)]
    touch: Option<PathBuf>,
    /// Does nothing but remove this file.
    #[arg(long)]
    untouch: Option<PathBuf>,
    /// Fails if a request did.
    #[arg(long)]
    strict: bool,
    /// Requests a second, each on a connection of its own.
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// Ends when this file is there.
    #[arg(long)]
    until: Option<PathBuf>,
    /// Ends after so many seconds at the latest.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Ends after so many requests; 0: never by their number.
    #[arg(long, default_value_t = 0)]
    count: u32,
    /// One connection for all requests, one a second; ends with the connection too.
    #[arg(long)]
    hold: bool,
    /// Sent with every request, to be looked for on the wire.
    #[arg(long, default_value = "none")]
    marker: String,
    /// What a request may take, in seconds.
    #[arg(long, default_value_t = 10)]
    timeout: u64,
}

/// What happened so far.
#[derive(Debug, Default)]
struct Counts {
    answered: u64,
    failed: u64,
    reasons: BTreeMap<String, u64>,
    /// By answer: shops answer with their name and their client's address.
    said: BTreeMap<String, u64>,
    slowest: Duration,
    /// Seconds after the start.
    first_failure: Option<f64>,
}

fn main() -> Result<()> {
    let load = Load::parse();
    if let Some(file) = &load.touch {
        return std::fs::write(file, "").with_context(|| format!("failed to create {}", file.display()));
    }
    if let Some(file) = &load.untouch {
        return std::fs::remove_file(file).with_context(|| format!("failed to remove {}", file.display()));
    }
    println!("ready");
    let began = Instant::now();
    let counts = if load.hold { hold(&load, began) } else { constant(&load, began)? };
    println!(
        "{}",
        json!({
            "answered": counts.answered, "failed": counts.failed, "reasons": counts.reasons,
            "said": counts.said, "slowest_ms": counts.slowest.as_millis(),
            "first_failure_s": counts.first_failure,
            "seconds": began.elapsed().as_secs_f64(),
        })
    );
    ensure!(!load.strict || counts.failed == 0, "{} requests failed", counts.failed);
    Ok(())
}

/// Whether it is time to end.
fn over(load: &Load, began: Instant) -> bool {
    load.until.as_ref().is_some_and(|file| file.exists())
        || began.elapsed() > Duration::from_secs(load.seconds)
}

/// Keeps the rate whatever answers take: some threads share one schedule.
fn constant(load: &Load, began: Instant) -> Result<Counts> {
    ensure!(load.rate > 0, "--rate: 0 is no rate");
    let counts = Arc::new(Mutex::new(Counts::default()));
    let next = Arc::new(Mutex::new(0_u32));
    let ended = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..load.rate.clamp(4, 64))
        .map(|_| {
            let (load, counts, next, ended) = (load.clone(), counts.clone(), next.clone(), ended.clone());
            std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let turn = {
                        let mut next = next.lock().expect("no thread panics with it");
                        *next += 1;
                        *next
                    };
                    if load.count > 0 && turn > load.count {
                        return;
                    }
                    let due = began + Duration::from_secs(1) * turn / load.rate;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    if over(&load, began) {
                        ended.store(true, Ordering::Relaxed);
                        return;
                    }
                    let started = Instant::now();
                    let result = ask(&load);
                    note(&mut counts.lock().expect("no thread panics with it"), result, started, began);
                }
            })
        })
        .collect();
    for worker in workers {
        if worker.join().is_err() {
            bail!("a thread panicked");
        }
    }
    Ok(std::mem::take(&mut *counts.lock().expect("no thread panics with it")))
}

fn note(counts: &mut Counts, result: Result<Option<String>>, started: Instant, began: Instant) {
    counts.slowest = counts.slowest.max(started.elapsed());
    match result {
        Ok(said) => {
            counts.answered += 1;
            if let Some(said) = said {
                *counts.said.entry(said).or_default() += 1;
            }
        }
        Err(error) => {
            counts.failed += 1;
            counts.first_failure.get_or_insert(began.elapsed().as_secs_f64());
            *counts.reasons.entry(format!("{error:#}")).or_default() += 1;
        }
    }
}

fn connect(load: &Load) -> Result<TcpStream> {
    let address: SocketAddr = load
        .target
        .to_socket_addrs()
        .context("failed to resolve")?
        .next()
        .context("failed to resolve: no address")?;
    let timeout = Duration::from_secs(load.timeout);
    let stream = TcpStream::connect_timeout(&address, timeout).context("failed to connect")?;
    stream.set_read_timeout(Some(timeout)).context("failed to set a timeout")?;
    stream.set_nodelay(true).context("failed to set TCP_NODELAY")?;
    Ok(stream)
}

fn ask(load: &Load) -> Result<Option<String>> {
    let mut stream = connect(load)?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nhost: {}\r\nx-marker: {}\r\nconnection: close\r\n\r\n",
        load.target, load.marker
    )
    .context("failed to send")?;
    // What a server that knows `connection: close` from nowhere needs to end.
    stream.shutdown(std::net::Shutdown::Write).context("failed to send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("failed to receive")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "answered {:?}", answer.lines().next().unwrap_or_default());
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned()))
}

/// One connection, asked once a second until it or the time ends.
fn hold(load: &Load, began: Instant) -> Counts {
    let mut counts = Counts::default();
    let stream = match connect(load) {
        Ok(stream) => stream,
        Err(error) => {
            note(&mut counts, Err(error), began, began);
            return counts;
        }
    };
    let mut answers = BufReader::new(stream);
    while !over(load, began) {
        let started = Instant::now();
        let result = exchange(&mut answers, load).map(|()| None);
        let failed = result.is_err();
        note(&mut counts, result, started, began);
        println!("{}", json!({"answered": counts.answered, "failed": counts.failed}));
        if failed {
            return counts;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    counts
}

/// A request and its answer on a connection that stays.
fn exchange(answers: &mut BufReader<TcpStream>, load: &Load) -> Result<()> {
    write!(answers.get_mut(), "GET / HTTP/1.1\r\nhost: {}\r\nx-marker: {}\r\n\r\n", load.target, load.marker)
        .context("failed to send")?;
    let mut length = 0;
    let mut first = String::new();
    let received = answers.read_line(&mut first).context("failed to receive")?;
    ensure!(received > 0, "failed to receive: the connection was closed");
    ensure!(first.starts_with("HTTP/1.1 200"), "answered {first:?}");
    loop {
        let mut line = String::new();
        ensure!(
            answers.read_line(&mut line).context("failed to receive")? > 0,
            "failed to receive: the connection was closed"
        );
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().context("failed to parse content-length")?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    answers.read_exact(&mut body).context("failed to receive")
}
