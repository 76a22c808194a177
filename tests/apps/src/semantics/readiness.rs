//! When a socket is readable and writable: low-water marks, edges, a reader that stalls.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libc::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::{Value, json};
use socket2::Socket;

use super::part::{Row, accept, connect, drain, go, listen, pattern, wait};
use crate::sys;

pub(super) const ROWS: &[Row] = &[
    Row { name: "so_rcvlowat", listen, server: low_water, client: raise_water },
    Row { name: "poll_level", listen, server: levels, client: change_levels },
    Row { name: "epoll_edges", listen, server: edges, client: make_edges },
    Row { name: "epoll_reset", listen, server: edge_of_reset, client: reset_at_once },
    Row { name: "read_times_out", listen, server: silent, client: time_out },
    Row { name: "stalled_reader", listen, server: stall, client: fill },
];

/// How long nothing is watched not to happen: a test of absence has no other end.
const ABSENCE: i32 = 300;
const FOREVER: i32 = -1;

/// The names of the events that `poll()` reports.
fn events(stream: &TcpStream, interest: i16, timeout: i32) -> Result<String> {
    let seen = sys::poll(stream, interest, timeout).context("poll")?;
    let names = [(POLLIN, "IN"), (POLLOUT, "OUT"), (POLLERR, "ERR"), (POLLHUP, "HUP"), (POLLRDHUP, "RDHUP")];
    let names: Vec<_> = names.into_iter().filter(|(bit, _)| seen & bit != 0).map(|(_, name)| name).collect();
    Ok(if names.is_empty() { "nothing".to_owned() } else { names.join("|") })
}

/// With SO_RCVLOWAT 1000, 500 bytes do not make a socket readable and 1000 do.
fn low_water(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    sys::set_low_water(&stream, 1000)?;
    while sys::queued(&stream)? < 500 {
        std::thread::sleep(Duration::from_millis(2));
    }
    let below = events(&stream, POLLIN, ABSENCE)?;
    go(&mut stream)?;
    let above = events(&stream, POLLIN, FOREVER)?;
    let queued = sys::queued(&stream)?;
    Ok(json!({"at_500": below, "at_1000": above, "queued": queued, "rest": drain(&mut stream)}))
}

fn raise_water(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    stream.write_all(&pattern(500))?;
    wait(&mut stream)?;
    stream.write_all(&pattern(500))?;
    wait_for_end(stream)
}

fn wait_for_end(mut stream: TcpStream) -> Result<Value> {
    stream.shutdown(Shutdown::Write)?;
    Ok(drain(&mut stream))
}

/// poll() at each stage of a connection's life.
fn levels(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    let interest = POLLIN | POLLOUT | POLLRDHUP;
    let idle = events(&stream, interest, ABSENCE)?;
    go(&mut stream)?;
    let readable = events(&stream, POLLIN, FOREVER)?;
    let mut hello = [0; 5];
    stream.read_exact(&mut hello)?;
    let emptied = events(&stream, POLLIN, ABSENCE)?;
    go(&mut stream)?;
    let half_closed = events(&stream, POLLRDHUP, FOREVER)?;
    let then = events(&stream, interest, ABSENCE)?;
    stream.shutdown(Shutdown::Write)?;
    let closed = events(&stream, interest, ABSENCE)?;
    Ok(json!({
        "idle": idle, "readable": readable, "emptied": emptied,
        "half_closed": half_closed, "then": then, "closed": closed,
    }))
}

fn change_levels(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    wait(&mut stream)?;
    stream.write_all(b"hello")?;
    wait(&mut stream)?;
    wait_for_end(stream)
}

fn watch(stream: &TcpStream, flags: EpollFlags) -> Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(stream, EpollEvent::new(flags | EpollFlags::EPOLLET, 0))?;
    Ok(epoll)
}

fn next(epoll: &Epoll, timeout: i32) -> Result<String> {
    let mut events = [EpollEvent::empty()];
    let count = epoll.wait(&mut events, EpollTimeout::try_from(timeout)?)?;
    Ok(if count == 0 { "nothing".to_owned() } else { format!("{:?}", events[0].events()) })
}

/// Edge-triggered: one event for each arrival, none for what was seen already.
fn edges(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    let epoll = watch(&stream, EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP)?;
    let mut seen = Vec::new();
    for _ in 0..3 {
        go(&mut stream)?;
        seen.push(next(&epoll, FOREVER)?);
        // Not read: without an arrival there is no edge.
        seen.push(next(&epoll, ABSENCE)?);
    }
    let mut nine = [0; 9];
    stream.read_exact(&mut nine)?;
    seen.push(next(&epoll, ABSENCE)?);
    go(&mut stream)?;
    seen.push(next(&epoll, FOREVER)?);
    let mut end = [0; 1];
    let read = stream.read(&mut end)?;
    Ok(json!({"events": seen, "read": read}))
}

fn make_edges(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    for _ in 0..3 {
        wait(&mut stream)?;
        stream.write_all(b"abc")?;
    }
    wait(&mut stream)?;
    wait_for_end(stream)
}

fn edge_of_reset(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    let epoll = watch(&stream, EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP)?;
    go(&mut stream)?;
    let event = next(&epoll, FOREVER)?;
    let error = stream.take_error()?.map(|error| super::part::errno(&error));
    Ok(json!({"event": event, "so_error": error, "read": drain(&mut stream)["end"]}))
}

fn reset_at_once(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    wait(&mut stream)?;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(json!({}))
}

/// SO_RCVTIMEO: a read without data gives EAGAIN, and the connection goes on.
fn time_out(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    stream.set_read_timeout(Some(Duration::from_millis(u64::try_from(ABSENCE)?)))?;
    let mut byte = [0];
    let early = super::part::result(stream.read(&mut byte));
    stream.set_read_timeout(None)?;
    go(&mut stream)?;
    stream.read_exact(&mut byte)?;
    Ok(json!({"early": early, "late": byte[0]}))
}

fn silent(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    wait(&mut stream)?;
    stream.write_all(b"*")?;
    Ok(json!({}))
}

/// Stalled connections at the same time: what each of them makes a daemon keep adds up.
const STALLED: usize = 16;
/// More than all buffers between the two ends may take.
const BOUND: usize = 48 << 20;

/// Reads nothing until every writer has stopped, then everything.
fn stall(listener: &Socket) -> Result<Value> {
    // The first connection says that the writers have stopped. It is answered before there are others:
    // through a proxy connections may arrive in another order than they were made.
    let mut control = accept(listener)?;
    go(&mut control)?;
    let mut streams = (0..STALLED).map(|_| accept(listener)).collect::<Result<Vec<_>>>()?;
    wait(&mut control)?;
    let mut readers = Vec::new();
    for mut stream in streams.drain(..) {
        readers.push(std::thread::spawn(move || drain(&mut stream)));
    }
    let mut ends = Vec::new();
    let mut total = 0;
    for reader in readers {
        let end = reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?;
        total += end["bytes"].as_u64().context("no byte count")?;
        ends.push(end["end"].clone());
    }
    ends.dedup();
    Ok(json!({"ends": ends, "some_bytes": total > 0}))
}

/// Writes until nothing more is taken for a while, on every connection; says `stalled` when all have stopped.
fn fill(to: SocketAddr) -> Result<Value> {
    let piece = pattern(1 << 16);
    let mut control = connect(to)?;
    wait(&mut control)?;
    let mut streams = (0..STALLED).map(|_| connect(to)).collect::<Result<Vec<_>>>()?;
    let mut sent = vec![0; STALLED];
    let mut last_progress = Instant::now();
    for stream in &streams {
        stream.set_nonblocking(true)?;
    }
    while last_progress.elapsed() < Duration::from_secs(1) {
        for (stream, sent) in streams.iter_mut().zip(&mut sent) {
            match stream.write(&piece[*sent % piece.len()..]) {
                Ok(length) => {
                    *sent += length;
                    last_progress = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("failed to keep a stalled connection"),
            }
            ensure!(
                *sent < BOUND,
                "the writer never stopped: {} bytes on descriptor {}",
                *sent,
                stream.as_raw_fd()
            );
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    go(&mut control)?;
    drop(control);
    let mut finished = Vec::new();
    for mut stream in streams {
        stream.set_nonblocking(false)?;
        stream.shutdown(Shutdown::Write)?;
        finished.push(drain(&mut stream)["end"].clone());
    }
    finished.dedup();
    Ok(json!({"stopped": true, "ends": finished}))
}
