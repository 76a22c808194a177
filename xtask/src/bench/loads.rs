//! The loads: real clients where there are any (iperf3, wrk), a ping-pong of 64 bytes where there is none.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use ambit_harness::{Family, Pod};
use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// iperf3's port.
pub(super) const IPERF: u16 = 5201;
/// nginx's port.
pub(super) const HTTP: u16 = 8080;

/// Which way a figure is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

/// Something to measure.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// One stream, as fast as it goes.
    Throughput,
    /// HTTP/1.1 keep-alive, 16 connections.
    Requests,
    /// HTTP/1.1, a connection for each request, 16 at a time.
    Connections,
    /// 64 bytes there and back, one connection.
    RoundTrip,
}

/// In the order in which they run.
pub(super) const ALL: [Load; 4] = [Load::Throughput, Load::Requests, Load::Connections, Load::RoundTrip];

impl Load {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Throughput => "bulk throughput",
            Self::Requests => "requests/s, keep-alive, 16 connections",
            Self::Connections => "new connections/s",
            Self::RoundTrip => "round trip of 64 bytes, median",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Throughput => "Gbit/s",
            Self::Requests | Self::Connections => "1/s",
            Self::RoundTrip => "µs",
        }
    }

    pub(super) fn better(self) -> Better {
        match self {
            Self::RoundTrip => Better::Lower,
            Self::Throughput | Self::Requests | Self::Connections => Better::Higher,
        }
    }

    /// Runs it once from the client's pod on CPU 0 to the server's on CPU 1.
    pub(super) fn run(self, client: &Pod, server: &Pod, seconds: u32) -> Result<f64> {
        let address = server.ip(Family::V4).to_string();
        let seconds = seconds.to_string();
        match self {
            Self::Throughput => {
                let arguments = ["-c", "0", "iperf3", "--json", "--client", &address, "--time", &seconds];
                let text = client.output("taskset", &arguments)?;
                let value: serde_json::Value = serde_json::from_str(&text).context("iperf3: not its JSON")?;
                let bits = value["end"]["sum_received"]["bits_per_second"].as_f64();
                Ok(bits.context("iperf3 measured nothing")? / 1e9)
            }
            Self::Requests => wrk(client, &address, &seconds, &[]),
            Self::Connections => wrk(client, &address, &seconds, &["-H", "Connection: close"]),
            Self::RoundTrip => round_trip(client, server),
        }
    }
}

fn wrk(client: &Pod, address: &str, seconds: &str, more: &[&str]) -> Result<f64> {
    let (duration, url) = (format!("{seconds}s"), format!("http://{address}:{HTTP}/"));
    let mut arguments = vec!["-c", "0", "wrk", "-t1", "-c16", "-d", &duration];
    arguments.extend(more);
    arguments.push(&url);
    let text = client.output("taskset", &arguments)?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.context("wrk measured nothing")?.trim().parse().context("wrk's Requests/sec is no number")
}

/// The median of ten thousand, after a thousand to warm up.
fn round_trip(client: &Pod, server: &Pod) -> Result<f64> {
    const WARM_UP: usize = 1_000;
    const COUNTED: usize = 10_000;
    let address = SocketAddr::new(server.ip(Family::V4), 7);
    let listener = server.run(|| TcpListener::bind(address))?.context("cannot listen for the ping-pong")?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| -> Result<()> {
            pin_thread(1)?;
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut buffer = [0; 64];
            while stream.read_exact(&mut buffer).is_ok() {
                stream.write_all(&buffer)?;
            }
            Ok(())
        });
        let mut times = client.run(|| -> Result<Vec<Duration>> {
            pin_thread(0)?;
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let mut buffer = [7; 64];
            let mut times = Vec::with_capacity(COUNTED);
            for round in 0..WARM_UP + COUNTED {
                let start = Instant::now();
                stream.write_all(&buffer)?;
                stream.read_exact(&mut buffer)?;
                if round >= WARM_UP {
                    times.push(start.elapsed());
                }
            }
            Ok(times)
        })??;
        echo.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        times.sort_unstable();
        Ok(times[COUNTED / 2].as_secs_f64() * 1e6)
    })
}

/// Opens connections that carry one byte each way and then stay idle.
pub(super) fn hold(client: &Pod, server: &Pod, connections: usize) -> Result<Vec<(TcpStream, TcpStream)>> {
    let address = SocketAddr::new(server.ip(Family::V4), 7);
    let listener =
        server.run(|| TcpListener::bind(address))?.context("cannot listen for idle connections")?;
    client.run(|| {
        let mut held = Vec::with_capacity(connections);
        for _ in 0..connections {
            let mut near = TcpStream::connect(address)?;
            near.write_all(b"x")?;
            let (mut far, _) = listener.accept()?;
            let mut byte = [0];
            far.read_exact(&mut byte)?;
            far.write_all(&byte)?;
            near.read_exact(&mut byte)?;
            held.push((near, far));
        }
        Ok(held)
    })?
}

/// One worker, no logs, a small file from memory.
pub(super) fn nginx_config(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 100000000;\n  server {{\n    listen {HTTP} backlog=4096;\n    \
         location / {{ return 200 \"ok\\n\"; }}\n  }}\n}}\n"
    )
}

/// Every thread of a process on one CPU; threads to come inherit it.
pub(super) fn pin(process: u32, cpu: usize) -> Result<()> {
    for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let thread: i32 = entry?.file_name().to_string_lossy().parse().context("a thread's number")?;
        sched_setaffinity(Pid::from_raw(thread), &one(cpu)?).context("cannot pin a daemon")?;
    }
    Ok(())
}

fn pin_thread(cpu: usize) -> Result<()> {
    sched_setaffinity(Pid::from_raw(0), &one(cpu)?).context("cannot pin a thread")
}

fn one(cpu: usize) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(cpu).context("no such CPU")?;
    Ok(set)
}

/// A count as a figure. Counts here are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(super) fn count(count: u64) -> f64 {
    count as f64
}
