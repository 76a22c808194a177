//! Frames of HTTP/2 by hand, for what no client would send.

use ambit_hbone::Tunnel;
use tokio::io::AsyncReadExt as _;

use crate::lab::DEADLINE;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a connection begins with.
pub(crate) fn opening() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

/// The head of stream 1, which may be all of it.
pub(crate) fn headers(fields: &[(&str, &[u8])], is_end: bool) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        // Literal, not indexed, no Huffman (RFC 7541, 6.2.2).
        block.push(0);
        for text in [name.as_bytes(), value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("short"));
            block.extend_from_slice(text);
        }
    }
    frame(HEADERS, END_HEADERS | if is_end { END_STREAM } else { 0 }, 1, &block)
}

/// All of the body of stream 1.
pub(crate) fn data(body: &[u8]) -> Vec<u8> {
    frame(DATA, END_STREAM, 1, body)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What becomes of stream 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ok,
    /// A status other than 200.
    Refused,
    Reset,
    Closed,
}

pub(crate) async fn verdict(tunnel: &mut Tunnel) -> Verdict {
    tokio::time::timeout(DEADLINE, read_verdict(tunnel)).await.expect("a verdict")
}

async fn read_verdict(tunnel: &mut Tunnel) -> Verdict {
    loop {
        let mut head = [0; 9];
        if tunnel.read_exact(&mut head).await.is_err() {
            return Verdict::Closed;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if tunnel.read_exact(&mut payload).await.is_err() {
            return Verdict::Closed;
        }
        let is_first = head[5..] == 1_u32.to_be_bytes();
        match head[3] {
            // The status comes first, and 200 is the eighth of the static table.
            HEADERS if is_first && payload.first() == Some(&0x88) => return Verdict::Ok,
            HEADERS if is_first => return Verdict::Refused,
            RESET if is_first => return Verdict::Reset,
            GO_AWAY => return Verdict::Closed,
            _ => {}
        }
    }
}
