//! HTTP for the suites: a server that tells what it was asked, a client of one request, and steady load.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_harness::Place;
use anyhow::{Context, Result, ensure};

use crate::listening::Listening;
use crate::load::{Load, Progress};
use crate::talk::connect;

/// An HTTP/1.1 server in a pod. Each answer has the header `server` with its name, and as its body the head
/// that it got. `/status/NNN` is answered with that status.
#[derive(Debug)]
pub struct WebServer {
    _listening: Listening,
    requests: Arc<AtomicUsize>,
}

impl WebServer {
    /// Listens on a port of every address of the place.
    pub fn start(place: &Place, name: &str, port: u16) -> Result<Self> {
        let requests = Arc::new(AtomicUsize::new(0));
        let (counter, own) = (Arc::clone(&requests), name.to_owned());
        // A client may go away in the middle.
        let answer = move |stream| drop(serve(stream, &own, &counter));
        Ok(Self { _listening: Listening::start(place, name, port, answer)?, requests })
    }

    /// How many requests it has got.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

fn serve(mut stream: TcpStream, name: &str, requests: &AtomicUsize) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(head) = read_head(&mut reader)? {
        requests.fetch_add(1, Ordering::Relaxed);
        let length = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        let path = head.split(' ').nth(1).unwrap_or_default();
        let status = path.strip_prefix("/status/").unwrap_or("200");
        let answer =
            format!("HTTP/1.1 {status} so\r\nserver: {name}\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        stream.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// A head without its last, empty line; none at the end of the connection.
fn read_head(reader: &mut impl BufRead) -> Result<Option<String>> {
    let mut head = String::new();
    loop {
        if reader.read_line(&mut head)? == 0 {
            ensure!(head.is_empty(), "the connection ended in a head: {head:?}");
            return Ok(None);
        }
        if let Some(whole) = head.strip_suffix("\r\n\r\n") {
            return Ok(Some(whole.to_owned()));
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// What a client got.
#[derive(Clone, Debug)]
pub struct WebAnswer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl WebAnswer {
    /// A header of the response.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// Which server answered.
    pub fn server(&self) -> &str {
        self.header("server").unwrap_or("none")
    }

    /// A header of the request as the server got it.
    pub fn seen(&self, name: &str) -> Option<&str> {
        header(&self.body, name)
    }
}

/// A connection for requests one after the other.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects from a place.
    pub fn connect(place: &Place, to: SocketAddr) -> Result<Self> {
        let stream = connect(place, to)?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream.try_clone()?), stream })
    }

    /// One request.
    pub fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<WebAnswer> {
        self.send(path, headers)?;
        self.receive()
    }

    fn send(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<()> {
        let fields = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<Vec<_>>();
        let fields = fields.concat();
        // In one segment.
        let head = format!("GET {path} HTTP/1.1\r\nhost: cart\r\n{fields}\r\n");
        self.stream.write_all(head.as_bytes()).context("failed to send a request")
    }

    fn receive(&mut self) -> Result<WebAnswer> {
        let head = read_head(&mut self.reader)?.context("the connection ended before the response")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("no status in {head:?}"))?;
        let length = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body).context("failed to read the body")?;
        Ok(WebAnswer { status, head, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

/// One request of a client that ends its side of the connection at once.
pub fn get_and_end(place: &Place, to: SocketAddr, path: &str) -> Result<WebAnswer> {
    let mut client = Client::connect(place, to)?;
    client.send(path, &[])?;
    client.stream.shutdown(Shutdown::Write)?;
    client.receive()
}

/// One request on a connection of its own.
pub fn get(place: &Place, to: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<WebAnswer> {
    Client::connect(place, to)?.get(path, headers)
}

/// Requests to an address until it is stopped: on one thread with a connection for each, on another over one
/// connection for as long as that lasts.
pub fn load(place: &Place, to: SocketAddr) -> Load {
    Load::of(place, &[to], [new_connections, one_connection])
}

fn new_connections(progress: &Progress, place: &Place, to: SocketAddr) -> Result<()> {
    while progress.goes_on() {
        asked(&mut Client::connect(place, to)?)?;
        progress.connection();
    }
    Ok(())
}

fn one_connection(progress: &Progress, place: &Place, to: SocketAddr) -> Result<()> {
    let mut lasting: Option<Client> = None;
    while progress.goes_on() {
        let mut client = match lasting.take() {
            Some(client) => client,
            None => Client::connect(place, to)?,
        };
        let answer = asked(&mut client)?;
        // A server that is going to close says so, and clients then use another connection.
        let closing = answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        lasting = (!closing).then_some(client);
        progress.round_trip();
    }
    Ok(())
}

fn asked(client: &mut Client) -> Result<WebAnswer> {
    let answer = client.get("/load", &[]).context("a request")?;
    ensure!(answer.status == 200, "status {}: {}", answer.status, answer.head);
    Ok(answer)
}
