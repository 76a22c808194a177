//! What applications rely on, row by row: each has a server's and a client's part, and each part tells what
//! it observed.
//!
//! An observation holds nothing that differs between two runs on the same network (no times, no ports), so
//! that runs with and without a mesh are compared for equality. The parts keep step over the connection
//! itself, never by time.

mod bytes;
mod close;
mod connect;
mod many;
mod readiness;

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

/// Every row.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    [connect::ROWS, close::ROWS, bytes::ROWS, readiness::ROWS, many::ROWS].into_iter().flatten()
}

/// An ordinary listening socket.
fn listen(address: SocketAddr) -> Result<Socket> {
    listen_with(address, Some(Protocol::TCP))
}

fn listen_with(address: SocketAddr, protocol: Option<Protocol>) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, protocol).context("socket")?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("failed to bind {address}"))?;
    socket.listen(4096)?;
    Ok(socket)
}

/// The next connection.
fn accept(listener: &Socket) -> Result<TcpStream> {
    let (socket, _) = listener.accept().context("accept")?;
    Ok(socket.into())
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(to).with_context(|| format!("connect to {to}"))
}

/// Tells the other part that it may go on.
fn go(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"!").context("failed to let the peer go on")
}

/// Waits for the other part's [`go`].
fn wait(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte).context("the other part did not say go on")
}

/// Bytes that do not repeat soon and are the same in both programs.
fn pattern(size: usize) -> Vec<u8> {
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

fn hex(digest: &digest::Digest) -> String {
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn sha256(data: &[u8]) -> String {
    hex(&digest::digest(&digest::SHA256, data))
}

/// Reads to the end: how many bytes, their hash, and how it ended.
fn drain(stream: &mut impl Read) -> Value {
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
fn errno(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| format!("{:?}", Errno::from_raw(number)))
}

/// How an operation went: a count, or the error's name.
fn result(result: io::Result<usize>) -> Value {
    match result {
        Ok(count) => count.into(),
        Err(error) => errno(&error).into(),
    }
}

/// How an operation without a count went.
fn done(result: io::Result<()>) -> Value {
    match result {
        Ok(()) => "ok".into(),
        Err(error) => errno(&error).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    /// Every row works between two sockets on loopback, where nothing stands between.
    #[test]
    fn rows_work_on_loopback() {
        for address in
            [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))]
        {
            // The long row of 1 GiB and the crowd have the suite to themselves.
            for row in
                super::rows().filter(|row| !row.name.starts_with("gibibyte") && row.name != "two_thousand")
            {
                let listener = (row.listen)(address).expect(row.name);
                let to = listener.local_addr().ok().and_then(|a| a.as_socket()).expect(row.name);
                let server = std::thread::spawn(move || (row.server)(&listener));
                let client = (row.client)(to);
                assert!(client.is_ok(), "{} as client: {client:?}", row.name);
                let server = server.join().expect("no panic");
                assert!(server.is_ok(), "{} as server: {server:?}", row.name);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = super::rows().map(|row| row.name).collect();
        assert_eq!(names.len(), super::rows().count());
    }
}
