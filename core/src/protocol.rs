//! What a client speaks, by the first bytes that it sends: [`sniff`]; of TLS the name it asks for: [`hello`].

mod hello;

pub use hello::{HELLO_LIMIT, Hello, hello};

/// What HTTP/2 with prior knowledge begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much of a request line is looked at.
pub const SNIFFED: usize = 4096;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// A request line of HTTP/1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// A TLS record with a handshake.
    Tls,
    /// Anything else.
    Tcp,
    /// Not decided yet: it may become HTTP or TLS.
    Undecided,
}

/// Looks at what has come so far. [`SNIFFED`] bytes always decide.
///
/// A protocol whose client waits for the server never gets here with bytes: its caller gives up after a
/// while.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    match bytes {
        [] | [0x16] => return Sniffed::Undecided,
        [0x16, 3, ..] => return Sniffed::Tls,
        _ => {}
    }
    if bytes.starts_with(PREFACE) {
        return Sniffed::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Sniffed::Undecided;
    }
    request_line(bytes)
}

/// Whether these first bytes may become the preface of HTTP/2.
pub fn may_become_http2(bytes: &[u8]) -> bool {
    PREFACE.starts_with(bytes)
}

/// `token SP target SP HTTP/1.x` and an end of line; a blank line ahead is overlooked, as servers do.
fn request_line(bytes: &[u8]) -> Sniffed {
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    match bytes.get(method) {
        None if bytes.len() < MAX_METHOD => return Sniffed::Undecided,
        Some(b' ') if method > 0 && method < MAX_METHOD => {}
        _ => return Sniffed::Tcp,
    }
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
            let is_http = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
            if is_http { Sniffed::Http1 } else { Sniffed::Tcp }
        }
        // Such a line is nothing but HTTP, which then refuses it.
        None if bytes.len() >= SNIFFED => Sniffed::Http1,
        None => Sniffed::Undecided,
    }
}

/// Longer than any registered method.
const MAX_METHOD: usize = 32;

/// Whether a byte may stand in a token (RFC 9110, section 5.6.2): a method, a field's name.
pub fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// A table, since each byte of each request's head is looked up.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};
