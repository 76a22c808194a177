//! What both parts of a row share: the sockets, keeping step, and how an outcome is reported.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use aws_lc_rs::digest;
use nix::errno::Errno;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

/// One behaviour.
#[derive(Debug)]
pub struct Row {
    /// Its name in reports.
    pub name: &'static str,
    /// Makes the listening socket; most are ordinary.
    pub listen: fn(SocketAddr) -> Result<Socket>,
    /// The server's part, on the listening socket.
    pub server: fn(&Socket) -> Result<Value>,
    /// The client's part.
    pub client: fn(SocketAddr) -> Result<Value>,
}

/// An ordinary listening socket.
pub(super) fn listen(address: SocketAddr) -> Result<Socket> {
    listen_with(address, Some(Protocol::TCP))
}

pub(super) fn listen_with(address: SocketAddr, protocol: Option<Protocol>) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, protocol).context("socket")?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("failed to bind {address}"))?;
    socket.listen(4096)?;
    Ok(socket)
}

/// The next connection.
pub(super) fn accept(listener: &Socket) -> Result<TcpStream> {
    let (socket, _) = listener.accept().context("accept")?;
    Ok(socket.into())
}

pub(super) fn connect(to: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(to).with_context(|| format!("failed to connect to {to}"))
}

/// Tells the other part that it may go on.
pub(super) fn go(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"!").context("failed to let the peer go on")
}

/// Waits for the other part's [`go`].
pub(super) fn wait(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte).context("failed to hear the other part say go on")
}

/// Bytes that do not repeat soon and are the same in both programs.
pub(super) fn pattern(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

pub(super) fn hex(digest: &digest::Digest) -> String {
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(super) fn sha256(data: &[u8]) -> String {
    hex(&digest::digest(&digest::SHA256, data))
}

/// Reads to the end: how many bytes, their hash, and how it ended.
pub(super) fn drain(stream: &mut impl Read) -> Value {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0_u64;
    let end = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break "EOF".to_owned(),
            Ok(length) => {
                context.update(&buffer[..length]);
                total += length as u64;
            }
            Err(error) => break errno(&error),
        }
    };
    serde_json::json!({"bytes": total, "sha256": hex(&context.finish()), "end": end})
}

/// An error's name, as in errno(3).
pub(super) fn errno(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| format!("{:?}", Errno::from_raw(number)))
}

/// How an operation went: a count, or the error's name.
pub(super) fn result(result: io::Result<usize>) -> Value {
    match result {
        Ok(count) => count.into(),
        Err(error) => errno(&error).into(),
    }
}

/// How an operation without a count went.
pub(super) fn done(result: io::Result<()>) -> Value {
    match result {
        Ok(()) => "ok".into(),
        Err(error) => errno(&error).into(),
    }
}
