//! One shop of the demo: answers HTTP/1.1 and asks the next shop behind it. It does not know of a mesh.
//!
//! `shop web --listen [::]:8080 --calls 10.96.0.2:80` answers `web(10.1.0.5) <- cart(…) <- db(…)`: each
//! shop's name with the address it saw its client under.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

/// A shop that answers HTTP and may ask another.
#[derive(Clone, Debug, Parser)]
struct Shop {
    /// What it calls itself.
    name: String,
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// The server that it asks before it answers.
    #[arg(long)]
    calls: Option<SocketAddr>,
}

/// Long enough for a busy machine, short enough for a person who waits.
const TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let shop = Shop::parse();
    let listener =
        TcpListener::bind(shop.listen).with_context(|| format!("failed to listen on {}", shop.listen))?;
    println!("ready");
    loop {
        let (stream, client) = listener.accept().context("failed to accept")?;
        let shop = shop.clone();
        std::thread::spawn(move || {
            if let Err(error) = serve(&shop, stream, client) {
                eprintln!("{}: {client}: {error:#}", shop.name);
            }
        });
    }
}

/// Answers requests until the client closes.
fn serve(shop: &Shop, mut stream: TcpStream, client: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream.try_clone()?);
    while read_head(&mut requests)? {
        let (status, body) = match answer(shop, client) {
            Ok(body) => ("200 OK", body),
            Err(error) => ("502 Bad Gateway", format!("{}({}) <- {error:#}\n", shop.name, client.ip())),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
    Ok(())
}

fn answer(shop: &Shop, client: SocketAddr) -> Result<String> {
    let own = format!("{}({})", shop.name, client.ip().to_canonical());
    match shop.calls {
        None => Ok(format!("{own}\n")),
        Some(next) => Ok(format!("{own} <- {}", ask(next)?)),
    }
}

/// One request to the next shop, on a connection of its own.
fn ask(next: SocketAddr) -> Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&next, TIMEOUT).with_context(|| format!("failed to connect to {next}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {next}\r\nconnection: close\r\n\r\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("failed to read an answer from {next}"))?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP from {next}"))?;
    ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{next} said {}: {}",
        head.lines().next().unwrap_or(""),
        body.trim()
    );
    Ok(body.to_owned())
}

/// Reads one request's head; false at the end of the connection.
fn read_head(requests: &mut impl BufRead) -> Result<bool> {
    let mut line = String::new();
    let mut any = false;
    loop {
        line.clear();
        if requests.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        if line.trim_end().is_empty() {
            return Ok(any);
        }
        any = true;
    }
}
