//! A program with every kind of probe that kubelets know: from PORT_BASE (8080) on, HTTP on +0, TCP on +1,
//! gRPC (the health protocol) on +2, and `ambit-probed check` for exec. Each counts, and HTTP on +90 says how
//! often it was asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use serde_json::json;

/// How often each port was asked.
#[derive(Debug, Default)]
struct Counts {
    http: AtomicU64,
    tcp: AtomicU64,
    grpc: AtomicU64,
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("check") {
        return Ok(());
    }
    let base: u16 = match std::env::var("PORT_BASE") {
        Ok(text) => text.parse().context("failed to parse PORT_BASE")?,
        Err(_) => 8080,
    };
    let counts = Arc::new(Counts::default());
    serve(base, &counts, |stream, counts| {
        counts.http.fetch_add(1, Ordering::Relaxed);
        http(stream, "ok\n")
    })?;
    serve(base + 1, &counts, |_, counts| {
        counts.tcp.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })?;
    serve(base + 2, &counts, |stream, counts| {
        counts.grpc.fetch_add(1, Ordering::Relaxed);
        grpc(stream)
    })?;
    serve(base + 90, &counts, |stream, counts| {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let body = json!({"http": now(&counts.http), "tcp": now(&counts.tcp), "grpc": now(&counts.grpc)});
        http(stream, &format!("{body}\n"))
    })?;
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// Accepts on a port until the process ends, on threads of its own.
fn serve(
    port: u16,
    counts: &Arc<Counts>,
    answer: impl Fn(TcpStream, &Counts) -> Result<()> + Clone + Send + 'static,
) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .with_context(|| format!("failed to listen on port {port}"))?;
    let counts = counts.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (counts, answer) = (counts.clone(), answer.clone());
            std::thread::spawn(move || {
                if let Err(error) = answer(stream, &counts) {
                    eprintln!("port {port}: {error:#}");
                }
            });
        }
    });
    Ok(())
}

fn http(stream: TcpStream, body: &str) -> Result<()> {
    let mut request = BufReader::new(stream);
    let mut line = String::new();
    while request.read_line(&mut line)? > 0 && !line.trim_end().is_empty() {
        line.clear();
    }
    let length = body.len();
    write!(
        request.get_mut(),
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    Ok(())
}

/// `grpc.health.v1.Health/Check`: SERVING, whatever is asked.
fn grpc(stream: TcpStream) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        stream.set_nonblocking(true)?;
        let mut connection = h2::server::handshake(tokio::net::TcpStream::from_std(stream)?).await?;
        while let Some(request) = connection.accept().await {
            let (_, mut respond) = request?;
            let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
            let mut body = respond.send_response(head, false)?;
            // Not compressed, two bytes long: field 1 (status) is 1 (SERVING).
            body.send_data(bytes::Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false)?;
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            body.send_trailers(trailers)?;
        }
        Ok(())
    })
}
