//! A server that greets with its name and the client's address, then echoes; and the client that asks it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use ambit_harness::Place;
use anyhow::{Context, Result, ensure};

use crate::listening::Listening;

/// Longer than any operation on a connection takes, on a busy machine too.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// A server in a pod, on both families. Dropping it closes its listener; connections go on until their
/// clients end them.
#[derive(Debug)]
pub struct Server(Listening);

impl Server {
    /// Listens on a port of every address of the place; greets as `name`.
    pub fn start(place: &Place, name: &str, port: u16) -> Result<Self> {
        let greeting = name.to_owned();
        // A client may go away in the middle.
        let serve = move |stream| drop(greet_and_echo(stream, &greeting));
        Listening::start(place, name, port, serve).map(Self)
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.0.accepted()
    }
}

fn greet_and_echo(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    let peer = stream.peer_addr()?;
    let greeting = format!("{name} {} {}\n", peer.ip().to_canonical(), peer.port());
    stream.write_all(greeting.as_bytes())?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buffer[..length])?;
    }
}

/// Which server answered, and the client's address as it saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub server: String,
    pub saw: IpAddr,
    pub saw_port: u16,
    /// The client's own port.
    pub port: u16,
}

/// A connection whose greeting has been read.
pub fn greeted(place: &Place, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = connect(place, to)?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).with_context(|| format!("failed to read a greeting from {to}"))?;
    }
    Ok(stream)
}

/// Connects from a place, with timeouts on everything.
pub fn connect(place: &Place, to: SocketAddr) -> Result<TcpStream> {
    let stream = place
        .run(|| TcpStream::connect_timeout(&to, TIMEOUT))?
        .with_context(|| format!("failed to connect to {to}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// One connection with a few bytes.
pub fn ask(place: &Place, to: SocketAddr) -> Result<Answer> {
    exchange(place, to, b"are you there?")
}

/// One connection: reads the greeting, sends the payload, half-closes, requires its echo and a clean end.
pub fn exchange(place: &Place, to: SocketAddr, payload: &[u8]) -> Result<Answer> {
    let stream = connect(place, to)?;
    let port = stream.local_addr()?.port();
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut greeting = String::new();
    reader.read_line(&mut greeting).with_context(|| format!("failed to read a greeting from {to}"))?;
    let mut words = greeting.split_whitespace();
    let mut word = || words.next().with_context(|| format!("{to} greeted with {greeting:?}"));
    let (server, saw, saw_port) = (word()?.to_owned(), word()?.parse()?, word()?.parse()?);
    let mut writer = stream;
    let echo = std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> std::io::Result<()> {
            writer.write_all(payload)?;
            writer.shutdown(Shutdown::Write)
        });
        let mut echo = Vec::new();
        let read = reader.read_to_end(&mut echo);
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        sent.with_context(|| format!("failed to send to {to}"))?;
        read.with_context(|| format!("failed to read from {to}"))?;
        anyhow::Ok(echo)
    })?;
    ensure!(echo == payload, "{to} echoed {} bytes of {}, or other ones", echo.len(), payload.len());
    Ok(Answer { server, saw, saw_port, port })
}
