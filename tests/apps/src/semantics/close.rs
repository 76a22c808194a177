//! Ways to close: half-closes, resets, lingering, closing with unread data, writing to a closed peer.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use socket2::{SockRef, Socket};

use super::part::{Row, accept, connect, done, drain, errno, go, listen, pattern, result, wait};

pub(super) const ROWS: &[Row] = &[
    Row { name: "half_close_by_client", listen, server: answer_after_eof, client: ask_and_half_close },
    Row { name: "half_close_by_server", listen, server: half_close_and_listen, client: send_after_eof },
    Row { name: "close_by_client", listen, server: read_to_end, client: send_and_close },
    Row { name: "reset_by_client", listen, server: be_reset, client: send_and_reset },
    Row { name: "reset_by_server", listen, server: reset_after_hello, client: see_reset },
    Row { name: "reset_with_data_in_flight", listen, server: reset_after_flood, client: see_flood_and_reset },
    Row { name: "linger", listen, server: read_slowly, client: close_lingering },
    Row { name: "close_with_unread_data", listen, server: close_unread, client: see_close_unread },
    Row { name: "write_to_who_is_gone", listen, server: leave, client: write_on },
    Row { name: "shutdown_both", listen, server: read_to_end, client: shut_both },
];

const MEBIBYTE: usize = 1 << 20;

/// Whatever is sent before the reset must have arrived, or the reset may overtake it.
fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).context("failed to set SO_LINGER")?;
    drop(stream);
    Ok(())
}

/// Reads the request to its end, then answers with 10 MiB: the other direction is closed all the while.
fn answer_after_eof(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    let request = drain(&mut stream);
    let sent = stream.write_all(&pattern(10 * MEBIBYTE));
    Ok(json!({"request": request, "sent": done(sent)}))
}

fn ask_and_half_close(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    stream.write_all(b"ten mebibytes, please")?;
    stream.shutdown(Shutdown::Write)?;
    let answer = drain(&mut stream);
    let late = stream.write(b"more");
    Ok(json!({"answer": answer, "write_after_shutdown": result(late)}))
}

fn half_close_and_listen(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    stream.write_all(b"go ahead")?;
    stream.shutdown(Shutdown::Write)?;
    Ok(drain(&mut stream))
}

fn send_after_eof(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    let invitation = drain(&mut stream);
    let sent = stream.write_all(&pattern(10 * MEBIBYTE));
    Ok(json!({"invitation": invitation, "sent": done(sent)}))
}

fn read_to_end(listener: &Socket) -> Result<Value> {
    Ok(drain(&mut accept(listener)?))
}

fn send_and_close(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    Ok(json!({"sent": done(stream.write_all(&pattern(MEBIBYTE)))}))
}

fn be_reset(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    wait(&mut stream)?;
    go(&mut stream)?;
    let end = drain(&mut stream);
    let write = stream.write(b"anyone?");
    Ok(json!({"read": end, "write": result(write)}))
}

fn send_and_reset(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    go(&mut stream)?;
    wait(&mut stream)?;
    reset(stream)?;
    Ok(json!({}))
}

fn reset_after_hello(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    wait(&mut stream)?;
    reset(stream)?;
    Ok(json!({}))
}

fn see_reset(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    go(&mut stream)?;
    let end = drain(&mut stream);
    let write = stream.write(b"anyone?");
    Ok(json!({"read": end, "write": result(write)}))
}

/// A reset discards what was not delivered: the client must see a reset and never a clean end.
fn reset_after_flood(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    wait(&mut stream)?;
    stream.set_nonblocking(true)?;
    let flood = pattern(MEBIBYTE);
    while stream.write(&flood).is_ok() {}
    reset(stream)?;
    Ok(json!({}))
}

fn see_flood_and_reset(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    go(&mut stream)?;
    Ok(json!({"end": drain(&mut stream)["end"]}))
}

fn read_slowly(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    wait(&mut stream)?;
    Ok(drain(&mut stream))
}

/// close() with SO_LINGER returns when everything is delivered, well before the linger time.
fn close_lingering(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    SockRef::from(&stream).set_linger(Some(Duration::from_secs(30)))?;
    go(&mut stream)?;
    stream.write_all(&pattern(4 * MEBIBYTE))?;
    let start = Instant::now();
    drop(stream);
    Ok(json!({"returned_early": start.elapsed() < Duration::from_secs(20)}))
}

fn close_unread(listener: &Socket) -> Result<Value> {
    let stream = accept(listener)?;
    let mut first = [0; 10];
    while stream.peek(&mut first)? < first.len() {}
    drop(stream);
    Ok(json!({}))
}

fn see_close_unread(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    stream.write_all(b"never read")?;
    Ok(json!({"end": drain(&mut stream)["end"]}))
}

fn leave(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    wait(&mut stream)?;
    Ok(json!({}))
}

/// After the server is gone, writing fails; the first write may still be taken.
fn write_on(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    go(&mut stream)?;
    let end = drain(&mut stream);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if let Err(error) = stream.write(b"anyone?") {
            return Ok(json!({"read": end, "write": errno(&error)}));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("writing to a server that is gone went on for 20 s")
}

fn shut_both(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    stream.write_all(b"that was all")?;
    stream.shutdown(Shutdown::Both)?;
    let mut buffer = [0; 1];
    Ok(json!({"read": result(stream.read(&mut buffer)), "write": result(stream.write(b"x"))}))
}
