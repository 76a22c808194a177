//! The loads: real clients where there are any (iperf3, wrk), a ping-pong of 64 bytes where there is none.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use ambit_harness::{Family, Pod};
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::cpu;
use super::system::Route;

/// iperf3's port.
pub(super) const IPERF: u16 = 5201;
/// nginx's port.
pub(super) const HTTP: u16 = 8080;
/// The port of round trips and of idle connections.
pub(super) const ECHO: u16 = 7;

/// Which way a figure is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

/// One measured figure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure {
    pub(super) metric: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    pub(super) value: f64,
}

/// How much was done, to divide CPU time by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Names of the metrics: the daemons' share, and everything.
    pub(super) daemons: &'static str,
    pub(super) everything: &'static str,
    pub(super) unit: &'static str,
    /// CPU seconds times this, per [`Work::amount`], is the figure.
    pub(super) scale: f64,
    pub(super) amount: f64,
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
    /// HTTP/1.1 keep-alive through one HTTP proxy, 32 connections.
    Proxied,
}

/// What tunnels and direct connections carry, in the order in which it runs.
pub(super) const ALL: [Load; 4] = [Load::Throughput, Load::Requests, Load::Connections, Load::RoundTrip];

/// Metrics as reports call them.
pub(super) const THROUGHPUT: &str = "bulk throughput";
pub(super) const REQUESTS: &str = "requests/s, keep-alive, 16 connections";
pub(super) const CONNECTIONS: &str = "new connections/s";
pub(super) const ROUND_TRIP: &str = "round trip of 64 bytes, median";
pub(super) const ROUND_TRIP_99: &str = "round trip of 64 bytes, 99th percentile";
pub(super) const PROXIED: &str = "HTTP proxy: requests/s, keep-alive, 32 connections";
pub(super) const PROXIED_50: &str = "HTTP proxy: time of a request, median";
pub(super) const PROXIED_99: &str = "HTTP proxy: time of a request, 99th percentile";

impl Load {
    /// A short name, for files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Requests => "requests",
            Self::Connections => "connections",
            Self::RoundTrip => "round-trip",
            Self::Proxied => "proxied",
        }
    }

    /// Runs it once, from the client's pod to the server's.
    pub(super) fn run(self, route: &Route, seconds: u32) -> Result<(Vec<Figure>, Option<Work>)> {
        match self {
            Self::Throughput => throughput(route, seconds),
            Self::Requests => {
                let (rate, count) = wrk(route, seconds, &[])?;
                let work = per_item("CPU per request: daemons", "CPU per request: everything", count);
                Ok((vec![higher(REQUESTS, "1/s", rate)], Some(work)))
            }
            Self::Connections => {
                let (rate, count) = wrk(route, seconds, &["-H", "Connection: close"])?;
                let work =
                    per_item("CPU per new connection: daemons", "CPU per new connection: everything", count);
                Ok((vec![higher(CONNECTIONS, "1/s", rate)], Some(work)))
            }
            Self::RoundTrip => Ok((round_trip(route)?, None)),
            Self::Proxied => proxied(route, seconds),
        }
    }
}

fn higher(metric: &'static str, unit: &'static str, value: f64) -> Figure {
    Figure { metric, unit, better: Better::Higher, value }
}

fn per_item(daemons: &'static str, everything: &'static str, amount: f64) -> Work {
    Work { daemons, everything, unit: "µs", scale: 1e6, amount }
}

/// Runs a client on its CPU; one that hangs is ended.
fn client(route: &Route, seconds: u32, arguments: &[&str]) -> Result<String> {
    let (limit, cpu) = ((seconds + 30).to_string(), route.client_cpu.to_string());
    let before = ["--kill-after=5", &limit, "taskset", "-c", &cpu];
    route.client.output("timeout", &[&before[..], arguments].concat())
}

fn throughput(route: &Route, seconds: u32) -> Result<(Vec<Figure>, Option<Work>)> {
    let (time, address) = (seconds.to_string(), route.target.to_string());
    let text = client(route, seconds, &["iperf3", "--json", "--client", &address, "--time", &time])?;
    let value: serde_json::Value =
        serde_json::from_str(&text).context("failed to parse the output of iperf3")?;
    let received = &value["end"]["sum_received"];
    let bits = received["bits_per_second"].as_f64().context("iperf3 measured nothing")?;
    let work = Work {
        daemons: "CPU per GB: daemons",
        everything: "CPU per GB: everything",
        unit: "s",
        scale: 1.0,
        amount: received["bytes"].as_f64().context("iperf3 counted nothing")? / 1e9,
    };
    Ok((vec![higher(THROUGHPUT, "Gbit/s", bits / 1e9)], Some(work)))
}

/// Requests a second, and how many there were.
fn wrk(route: &Route, seconds: u32, more: &[&str]) -> Result<(f64, f64)> {
    wrk_said(&wrk_text(route, seconds, &[&["-c16"], more].concat())?)
}

fn wrk_text(route: &Route, seconds: u32, more: &[&str]) -> Result<String> {
    let duration = format!("{seconds}s");
    let url = format!("http://{}/", SocketAddr::new(route.target, route.port));
    client(route, seconds, &[&["wrk", "-t1", "-d", &duration][..], more, &[&url]].concat())
}

/// Requests through one proxy, and how long they took.
fn proxied(route: &Route, seconds: u32) -> Result<(Vec<Figure>, Option<Work>)> {
    let text = wrk_text(route, seconds, &["-c32", "--latency"])?;
    let (rate, count) = wrk_said(&text)?;
    let time = |metric, share| {
        let value = wrk_time(&text, share)?;
        Ok::<_, anyhow::Error>(Figure { metric, unit: "µs", better: Better::Lower, value })
    };
    let figures = vec![higher(PROXIED, "1/s", rate), time(PROXIED_50, "50%")?, time(PROXIED_99, "99%")?];
    let work = per_item(
        "HTTP proxy: CPU per request, the proxy's",
        "HTTP proxy: CPU per request, everything",
        count,
    );
    Ok((figures, Some(work)))
}

/// A share of the times that wrk has measured, in microseconds.
fn wrk_time(text: &str, share: &str) -> Result<f64> {
    let said =
        text.lines().find_map(|line| line.trim().strip_prefix(share)).context("wrk measured no times")?;
    let said = said.trim();
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6), ("m", 6e7)];
    let (number, scale) = units
        .iter()
        .find_map(|(unit, scale)| Some((said.strip_suffix(unit)?, scale)))
        .with_context(|| format!("{said} has no unit of time"))?;
    Ok(number.parse::<f64>().with_context(|| format!("failed to parse {said}"))? * scale)
}

fn wrk_said(text: &str) -> Result<(f64, f64)> {
    // Answers that were not answers must not count as fast ones.
    let bad = text.lines().map(str::trim).find(|line| {
        line.starts_with("Non-2xx")
            || (line.starts_with("Socket errors") && line.contains(|c| ('1'..='9').contains(&c)))
    });
    ensure!(bad.is_none(), "wrk: {}", bad.unwrap_or_default());
    let number = |text: Option<&str>| {
        text.context("wrk measured nothing")?.trim().parse().context("failed to parse a number of wrk")
    };
    let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let count = text.lines().find_map(|line| line.trim().split_once(" requests in ")).map(|(count, _)| count);
    Ok((number(rate)?, number(count)?))
}

/// Median and 99th percentile of ten thousand, after a thousand to warm up.
fn round_trip(route: &Route) -> Result<Vec<Figure>> {
    const WARM_UP: usize = 1_000;
    const COUNTED: usize = 10_000;
    let listener = listen(&route.server)?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| -> Result<()> {
            cpu::pin_thread(route.server_cpu)?;
            let mut buffer = [0; 64];
            let mut stream = accept(&listener, &mut buffer)?;
            stream.set_nodelay(true)?;
            stream.write_all(&buffer)?;
            while stream.read_exact(&mut buffer).is_ok() {
                stream.write_all(&buffer)?;
            }
            Ok(())
        });
        let mut times = route.client.run(|| -> Result<Vec<Duration>> {
            cpu::pin_thread(route.client_cpu)?;
            let mut stream = connect(route)?;
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
        let at = |metric, index: usize| {
            let value = times[index].as_secs_f64() * 1e6;
            Figure { metric, unit: "µs", better: Better::Lower, value }
        };
        Ok(vec![at(ROUND_TRIP, COUNTED / 2), at(ROUND_TRIP_99, COUNTED / 100 * 99)])
    })
}

/// Opens connections that carry one byte each way and then stay idle.
pub(super) fn hold(route: &Route, connections: usize) -> Result<Vec<(TcpStream, TcpStream)>> {
    let listener = listen(&route.server)?;
    route.client.run(|| {
        let mut held = Vec::with_capacity(connections);
        for _ in 0..connections {
            let mut near = connect(route)?;
            near.write_all(b"x")?;
            let mut byte = [0];
            let mut far = accept(&listener, &mut byte)?;
            far.write_all(&byte)?;
            near.read_exact(&mut byte)?;
            held.push((near, far));
        }
        Ok(held)
    })?
}

/// Opens HTTP connections that carry one request each and then stay open.
pub(super) fn hold_http(route: &Route, connections: usize) -> Result<Vec<TcpStream>> {
    let address = SocketAddr::new(route.target, route.port);
    route.client.run(|| (0..connections).map(|_| asked_once(address)).collect())?
}

fn asked_once(address: SocketAddr) -> Result<TcpStream> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("failed to connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n")?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(ANSWER.as_bytes()) {
        let count = stream.read(&mut buffer).context("failed to read an answer")?;
        ensure!(count > 0, "no whole answer: {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..count]);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&answer));
    Ok(stream)
}

/// How long our own sockets wait before they fail.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A listener of our own in the server's pod, at [`ECHO`].
pub(super) fn listen(server: &Pod) -> Result<TcpListener> {
    let address = SocketAddr::new(server.ip(Family::V4), ECHO);
    let listener = server
        .run(|| TcpListener::bind(address))?
        .with_context(|| format!("failed to listen at {address}"))?;
    let timeout = TimeVal::new(TIMEOUT.as_secs().try_into()?, 0);
    setsockopt(&listener, sockopt::ReceiveTimeout, &timeout)?;
    Ok(listener)
}

fn connect(route: &Route) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((route.target, ECHO))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// The next connection that says something. A proxy may come late with one whose client has left meanwhile.
fn accept(listener: &TcpListener, first: &mut [u8]) -> Result<TcpStream> {
    loop {
        let (mut stream, _) = listener.accept().context("failed to accept a connection")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        if stream.read_exact(first).is_ok() {
            return Ok(stream);
        }
    }
}

/// Whether a port takes connections from the pod itself.
pub(super) fn listens(pod: &Pod, address: IpAddr, port: u16) -> Result<()> {
    pod.run(|| TcpStream::connect((address, port)))?.map(drop).context("failed to connect")
}

/// What nginx answers.
const ANSWER: &str = "ok\n";

/// One worker, no logs, a small file from memory.
pub(super) fn nginx_config(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{ \
         worker_connections 4096; }}\nhttp {{\n  access_log off;\n  keepalive_requests 100000000;\n  server \
         {{\n    listen {HTTP} backlog=4096;\n    location / {{ return 200 \"ok\\n\"; }}\n  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::{wrk_said, wrk_time};

    const GOOD: &str = "Running 3s test @ http://10.0.0.1/\n  1 threads and 16 connections\n  Thread Stats \
                        …\n  120034 requests in 3.00s, 17.2MB read\nRequests/sec:  40011.25\nTransfer/sec: \
                        5.7MB\n";

    #[test]
    fn times_are_parsed() {
        let text = "  Latency Distribution\n     50%    1.20ms\n     75%    2.00s\n     99%  830.00us\n";
        for (share, expected) in [("50%", 1200.0), ("75%", 2e6), ("99%", 830.0)] {
            let time = wrk_time(text, share).expect(share);
            assert!((time - expected).abs() < 1e-6, "{share}: {time}");
        }
        assert!(wrk_time(text, "90%").is_err());
    }

    #[test]
    fn wrk_output_is_parsed() {
        let (rate, count) = wrk_said(GOOD).expect("it measured");
        assert!((rate - 40_011.25).abs() < f64::EPSILON && (count - 120_034.0).abs() < f64::EPSILON);
        let rows = [
            ("refusals", "  Non-2xx or 3xx responses: 4\n", "Non-2xx"),
            ("errors", "  Socket errors: connect 0, read 12, write 0, timeout 0\n", "read 12"),
        ];
        for (name, line, expected) in rows {
            let error = wrk_said(&format!("{GOOD}{line}")).expect_err(name);
            assert!(error.to_string().contains(expected), "{name}: {error}");
        }
        let quiet = format!("{GOOD}  Socket errors: connect 0, read 0, write 0, timeout 0\n");
        assert!(wrk_said(&quiet).is_ok());
        assert!(wrk_said("").is_err());
    }
}
