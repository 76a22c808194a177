//! Many short connections, quickly: clients that enter their namespace once, and then connect again and
//! again.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::os::linux::net::TcpStreamExt as _;
use std::time::{Duration, Instant};

use ambit_harness::Place;
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use crate::talk::TIMEOUT;

/// Connections from a place to a server (see [`crate::Server`]), one after the other.
#[derive(Clone, Debug)]
pub struct Stint {
    pub from: Place,
    pub to: SocketAddr,
    pub connections: usize,
    /// How many bytes each sends and gets back.
    pub payload: usize,
}

impl Stint {
    /// Every fifth connection ends with a reset, the others in an orderly way.
    fn run(&self) -> Result<()> {
        self.from.run(|| {
            (0..self.connections).try_for_each(|number| {
                once(self.to, self.payload, number % 5 == 4)
                    .with_context(|| format!("connection {number} to {}", self.to))
            })
        })?
    }
}

/// Runs stints side by side, and how long that took. An error if one connection failed.
pub fn run(stints: &[Stint]) -> Result<Duration> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = stints.iter().map(|stint| scope.spawn(|| stint.run())).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(began.elapsed())
}

fn once(to: SocketAddr, payload: usize, reset: bool) -> Result<()> {
    let mut stream = dial(to)?;
    greeting(&mut stream)?;
    let (sent, mut echo) = (vec![b'x'; payload], vec![0; payload]);
    stream.write_all(&sent).context("failed to write")?;
    stream.read_exact(&mut echo).context("failed to read")?;
    ensure!(echo == sent, "other bytes come back");
    if reset {
        return Ok(reset_at_close(&stream)?);
    }
    stream.shutdown(Shutdown::Write).context("failed to half-close")?;
    ensure!(stream.read(&mut [0]).context("failed to wait for the end")? == 0, "bytes that were not sent");
    Ok(())
}

/// Connects from the namespace that this thread is in, with timeouts on everything.
pub fn dial(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Reads the line that a server greets with; its length.
pub fn greeting(stream: &mut TcpStream) -> std::io::Result<usize> {
    let (mut line, mut length) = ([0; 256], 0);
    while !line[..length].ends_with(b"\n") {
        match stream.read(&mut line[length..])? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
    }
    Ok(length)
}

/// Has the stream's end be a reset. What has been read is acknowledged first: what is not when a connection
/// is reset has not been sent, as the peer sees it.
pub fn reset_at_close(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_quickack(true)?;
    setsockopt(&stream.as_fd(), sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}
