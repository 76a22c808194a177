//! Many connections at once.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use socket2::Socket;

use super::part::{Row, accept, connect, listen};

pub(super) const ROWS: &[Row] = &[Row { name: "two_thousand", listen, server: answer_all, client: open_all }];

const CONNECTIONS: usize = 2_000;

fn raise_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("failed to raise the limit of open files")
}

/// Accepts all before it answers any.
fn answer_all(listener: &Socket) -> Result<Value> {
    raise_limit()?;
    let mut streams = (0..CONNECTIONS).map(|_| accept(listener)).collect::<Result<Vec<_>>>()?;
    let mut peers = std::collections::BTreeSet::new();
    for stream in &mut streams {
        peers.insert(stream.peer_addr()?);
        let mut word = [0; 8];
        stream.read_exact(&mut word).context("failed to read from a connection")?;
        word.reverse();
        stream.write_all(&word)?;
    }
    let mut byte = [0];
    let ends =
        streams.iter_mut().map(|stream| stream.read(&mut byte)).filter(|end| matches!(end, Ok(0))).count();
    Ok(json!({"accepted": streams.len(), "different_peers": peers.len(), "clean_ends": ends}))
}

fn open_all(to: SocketAddr) -> Result<Value> {
    raise_limit()?;
    let mut streams = Vec::new();
    for number in 0..CONNECTIONS {
        let mut stream = connect(to)?;
        stream.write_all(&(number as u64).to_be_bytes())?;
        streams.push(stream);
    }
    let mut right = 0;
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut word = [0; 8];
        stream
            .read_exact(&mut word)
            .with_context(|| format!("failed to read an answer on connection {number}"))?;
        word.reverse();
        right += usize::from(word == (number as u64).to_be_bytes());
        stream.shutdown(Shutdown::Write)?;
    }
    Ok(json!({"opened": streams.len(), "right_answers": right}))
}
