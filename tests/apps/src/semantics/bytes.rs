//! Ways to move bytes: much, in pieces, by peeking, by file, by pipe, out of band.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::pipe;
use serde_json::{Value, json};
use socket2::Socket;

use super::part::{Row, accept, connect, done, drain, go, hex, listen, pattern, result, sha256, wait};
use crate::sys;

pub(super) const ROWS: &[Row] = &[
    Row { name: "gibibyte_up", listen, server: hash_everything, client: send_gibibyte },
    Row {
        name: "gibibyte_down",
        listen,
        server: |l| send_much(accept(l)?, GIBIBYTE),
        client: |to| Ok(drain(&mut connect(to)?)),
    },
    Row {
        name: "both_directions_at_once",
        listen,
        server: |l| duplex(accept(l)?),
        client: |to| duplex(connect(to)?),
    },
    Row { name: "one_byte_at_a_time", listen, server: echo_bytes, client: send_bytes },
    Row { name: "msg_peek", listen, server: peek, client: |to| step(to, b"0123456789") },
    Row { name: "msg_trunc_discards", listen, server: discard, client: |to| step(to, b"0123456789") },
    Row { name: "msg_waitall", listen, server: wait_all, client: two_pieces },
    Row { name: "msg_waitall_short_at_eof", listen, server: wait_all_short, client: |to| step(to, b"01234") },
    Row { name: "splice", listen, server: splice_in, client: splice_out },
    Row { name: "sendfile", listen, server: hash_everything, client: send_file },
    Row { name: "cork", listen, server: hash_everything, client: corked },
    Row { name: "out_of_band", listen, server: urgent_seen, client: send_urgent },
    Row { name: "out_of_band_inline", listen, server: urgent_inline, client: send_urgent },
];

const MEBIBYTE: usize = 1 << 20;
const GIBIBYTE: usize = 1 << 30;

fn hash_everything(listener: &Socket) -> Result<Value> {
    Ok(drain(&mut accept(listener)?))
}

fn send_gibibyte(to: SocketAddr) -> Result<Value> {
    send_much(connect(to)?, GIBIBYTE)
}

/// Sends so much and half-closes; the hash of what was sent, under the same names as [`drain`].
fn send_much(mut stream: TcpStream, size: usize) -> Result<Value> {
    // A prime: pieces of it never fall on the boundaries of buffers and frames.
    let piece = pattern(1_048_573);
    let mut context = digest::Context::new(&digest::SHA256);
    let mut left = size;
    while left > 0 {
        let part = &piece[..piece.len().min(left)];
        stream.write_all(part).context("failed to send")?;
        context.update(part);
        left -= part.len();
    }
    stream.shutdown(Shutdown::Write)?;
    let back = drain(&mut stream);
    Ok(json!({"bytes": size, "sha256": hex(&context.finish()), "back": back}))
}

fn duplex(stream: TcpStream) -> Result<Value> {
    let mut reader = stream.try_clone()?;
    let mut writer = stream;
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || {
            let sent = writer.write_all(&pattern(32 * MEBIBYTE));
            writer.shutdown(Shutdown::Write).and(sent)
        });
        let received = drain(&mut reader);
        let sent = sent.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        Ok(json!({"sent": done(sent), "received": received}))
    })
}

fn echo_bytes(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    let mut count = 0;
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
        count += 1;
    }
    Ok(json!({"bytes": count}))
}

fn send_bytes(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    stream.set_nodelay(true)?;
    let sent = pattern(1000);
    let mut back = vec![0; sent.len()];
    for (byte, echo) in sent.iter().zip(back.chunks_mut(1)) {
        stream.write_all(std::slice::from_ref(byte))?;
        stream.read_exact(echo)?;
    }
    Ok(json!({"same": back == sent}))
}

/// Sends, half-closes, and reads to the end.
fn step(to: SocketAddr, data: &[u8]) -> Result<Value> {
    let mut stream = connect(to)?;
    stream.write_all(data)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(drain(&mut stream))
}

/// Waits until so many bytes can be read at once.
fn await_queued(stream: &TcpStream, count: i32) -> Result<i32> {
    loop {
        let queued = sys::queued(stream)?;
        if queued >= count {
            return Ok(queued);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn peek(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    let queued = await_queued(&stream, 10)?;
    let (mut first, mut second, mut third) = ([0; 4], [0; 100], [0; 4]);
    let first_count = stream.peek(&mut first)?;
    let second_count = stream.peek(&mut second)?;
    stream.read_exact(&mut third)?;
    let left = sys::queued(&stream)?;
    Ok(json!({
        "queued": queued, "peek_4": text(&first[..first_count]), "peek_100": text(&second[..second_count]),
        "read_4": text(&third), "queued_after": left, "rest": drain(&mut stream),
    }))
}

fn discard(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    await_queued(&stream, 10)?;
    let discarded = sys::discard(&stream, 4);
    Ok(json!({"discarded": result(discarded), "rest": drain(&mut stream)}))
}

fn wait_all(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    await_queued(&stream, 3)?;
    let mut other = stream.try_clone()?;
    // The second piece is asked for while the read waits.
    let asker = std::thread::spawn(move || go(&mut other));
    let mut buffer = [0; 8];
    let length = recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_WAITALL)?;
    asker.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))??;
    Ok(json!({"read": text(&buffer[..length]), "rest": drain(&mut stream)}))
}

fn two_pieces(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    stream.write_all(b"abc")?;
    wait(&mut stream)?;
    stream.write_all(b"defgh")?;
    stream.shutdown(Shutdown::Write)?;
    Ok(drain(&mut stream))
}

fn wait_all_short(listener: &Socket) -> Result<Value> {
    let stream = accept(listener)?;
    let mut buffer = [0; 100];
    let length = recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_WAITALL)?;
    Ok(json!({"read": text(&buffer[..length])}))
}

/// Socket → pipe → socket: echoes without touching the bytes.
fn splice_in(listener: &Socket) -> Result<Value> {
    let stream = accept(listener)?;
    let (from, to) = pipe()?;
    let mut total = 0;
    loop {
        let length = splice(&stream, None, &to, None, 1 << 16, SpliceFFlags::empty())?;
        if length == 0 {
            break;
        }
        let mut left = length;
        while left > 0 {
            left -= splice(&from, None, &stream, None, left, SpliceFFlags::SPLICE_F_MOVE)?;
        }
        total += length;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(json!({"spliced": total}))
}

/// File → pipe → socket, and the echo must be the same.
fn splice_out(to: SocketAddr) -> Result<Value> {
    let stream = connect(to)?;
    let data = pattern(8 * MEBIBYTE);
    let file = file_with(&data)?;
    let mut reader = stream.try_clone()?;
    let back = std::thread::spawn(move || drain(&mut reader));
    let (pipe_out, pipe_in) = pipe()?;
    let mut offset = 0;
    loop {
        let length = splice(&file, Some(&mut offset), &pipe_in, None, 1 << 16, SpliceFFlags::empty())?;
        if length == 0 {
            break;
        }
        let mut left = length;
        while left > 0 {
            left -= splice(&pipe_out, None, &stream, None, left, SpliceFFlags::SPLICE_F_MORE)?;
        }
    }
    stream.shutdown(Shutdown::Write)?;
    let back = back.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    Ok(json!({"back": back, "sent": sha256(&data)}))
}

/// A file without a name that holds these bytes.
fn file_with(data: &[u8]) -> Result<File> {
    let file = nix::sys::memfd::memfd_create(c"pattern", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(data)?;
    Ok(file)
}

fn send_file(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    let data = pattern(16 * MEBIBYTE);
    let file = file_with(&data)?;
    let mut offset = 0;
    while usize::try_from(offset)? < data.len() {
        let sent = sendfile(&stream, &file, Some(&mut offset), data.len())?;
        ensure!(sent > 0, "sendfile sent nothing");
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(json!({"sent": sha256(&data), "back": drain(&mut stream)}))
}

/// TCP_CORK, MSG_MORE and scattered writes: the same bytes, however they are gathered.
fn corked(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    let data = pattern(100_000);
    sys::set_tcp_option(&stream, libc::TCP_CORK, 1)?;
    for piece in data[..50_000].chunks(777) {
        stream.write_all(piece)?;
    }
    sys::set_tcp_option(&stream, libc::TCP_CORK, 0)?;
    let mut left = &data[50_000..90_000];
    while !left.is_empty() {
        let length = left.len().min(1000);
        let sent = send(stream.as_raw_fd(), &left[..length], MsgFlags::from_bits_retain(libc::MSG_MORE))?;
        left = &left[sent..];
    }
    let pieces: Vec<std::io::IoSlice<'_>> = data[90_000..].chunks(100).map(std::io::IoSlice::new).collect();
    let written = stream.write_vectored(&pieces)?;
    ensure!(written == 10_000, "writev wrote {written}");
    stream.shutdown(Shutdown::Write)?;
    Ok(json!({"sent": sha256(&data), "back": drain(&mut stream)}))
}

/// Without SO_OOBINLINE: the urgent byte stays out of the stream and is fetched with MSG_OOB.
fn urgent_seen(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    let mut byte = [0];
    let start = Instant::now();
    // It comes after the bytes before it; where it never comes, there is no other sign than time.
    let urgent = loop {
        match recv(stream.as_raw_fd(), &mut byte, MsgFlags::MSG_OOB).map_err(std::io::Error::from) {
            Err(_) if start.elapsed() < Duration::from_secs(1) => {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => break other,
        }
    };
    let taken = urgent.as_ref().is_ok_and(|count| *count == 1).then(|| text(&byte));
    let mut before = [0; 6];
    stream.read_exact(&mut before)?;
    let mark = sys::at_mark(&stream)?;
    go(&mut stream)?;
    let mut rest = String::new();
    stream.read_to_string(&mut rest)?;
    Ok(json!({
        "msg_oob": result(urgent), "urgent": taken, "before": text(&before), "at_mark": mark, "rest": rest,
    }))
}

/// With SO_OOBINLINE, as telnet and FTP servers have it: no byte of the stream is lost.
fn urgent_inline(listener: &Socket) -> Result<Value> {
    let mut stream = accept(listener)?;
    socket2::SockRef::from(&stream).set_out_of_band_inline(true)?;
    go(&mut stream)?;
    let mut whole = String::new();
    stream.read_to_string(&mut whole)?;
    Ok(json!({"stream": whole}))
}

fn send_urgent(to: SocketAddr) -> Result<Value> {
    let mut stream = connect(to)?;
    stream.write_all(b"before")?;
    send(stream.as_raw_fd(), b"U", MsgFlags::MSG_OOB)?;
    stream.write_all(b"after")?;
    wait(&mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(drain(&mut stream))
}
