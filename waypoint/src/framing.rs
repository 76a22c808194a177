//! How HTTP/1 requests are delimited, checked before hyper reads them: [`Framing::check`].
//!
//! What passes is the part of RFC 9112 that has one reading: lines end in CRLF, at most one `Content-Length`
//! in plain digits, or one `Transfer-Encoding` that is `chunked`, never both, and chunks by the letter. So
//! hyper finds the same beginnings and ends of requests, and what it would be lenient about (a length beside
//! chunks, bare line feeds, equal lengths) does not reach it (`docs/decisions/305`).

mod word;

use std::mem::take;

use ambit_core::protocol::is_token;

use self::word::Word;

#[cfg(test)]
mod tests;

/// Digits of a length; more than anybody sends, and less than overflows.
const LENGTH_DIGITS: usize = 18;
/// Digits of a chunk's size.
const SIZE_DIGITS: u8 = 15;

/// How far the requests of a connection have been read.
#[derive(Debug, Default)]
pub struct Framing {
    state: State,
    section: Section,
    /// The name, and then the value, of a field.
    word: Word,
    field: Field,
    message: Message,
}

/// Bytes that are not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Of these bytes, so many may be used.
    pub at: usize,
    /// What they then break off in.
    pub within: Part,
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its request line and fields.
    Head,
    /// What follows them.
    Body,
}

/// What a head says of its request.
#[derive(Debug, Default)]
struct Message {
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Section {
    #[default]
    Head,
    Trailers,
}

#[derive(Clone, Copy, Debug, Default)]
enum Field {
    Length,
    Encoding,
    #[default]
    Other,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// A request, or an empty line ahead of it.
    #[default]
    Start,
    StartLf,
    RequestLine,
    /// The line feed of a line that is not the last of its section.
    LineLf,
    LineStart,
    Name,
    Value,
    SectionLf,
    /// So many bytes of a body.
    Length(u64),
    ChunkStart,
    ChunkSize {
        size: u64,
        digits: u8,
    },
    ChunkExtension(u64),
    ChunkSizeLf(u64),
    /// So many bytes of a chunk.
    Chunk(u64),
    ChunkCr,
    ChunkLf,
}

impl State {
    /// Bytes that are to be passed over.
    fn counted(&mut self) -> Option<&mut u64> {
        match self {
            Self::Length(left) | Self::Chunk(left) if *left > 0 => Some(left),
            _ => None,
        }
    }

    fn is_in_body(self) -> bool {
        matches!(
            self,
            Self::Length(_)
                | Self::ChunkStart
                | Self::ChunkSize { .. }
                | Self::ChunkExtension(_)
                | Self::ChunkSizeLf(_)
                | Self::Chunk(_)
                | Self::ChunkCr
                | Self::ChunkLf
        )
    }
}

impl Framing {
    /// Reads the next bytes of a connection. After a fault nothing more may be asked.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        // The last byte of the current request's head, if it is among these: a fault in what follows then
        // breaks off the head, and nobody sees the request.
        let mut head_end = None;
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let Some(left) = self.state.counted() {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                *left -= count as u64;
                at += count;
                self.end_of_counted();
                continue;
            }
            let (was_start, section) = (matches!(self.state, State::Start), self.section);
            if was_start && !take(&mut self.message.upgrade) {
                head_end = None;
            }
            let ends_head = matches!((self.state, section), (State::SectionLf, Section::Head));
            // The answer to a wish for another protocol decides what the next bytes are.
            let is_early = was_start && head_end.is_some();
            let next = if is_early { None } else { self.next(byte) };
            let Some(next) = next else { return Err(self.fault(at, head_end)) };
            if ends_head {
                head_end = Some(at);
            }
            self.state = next;
            at += 1;
        }
        Ok(())
    }

    fn fault(&self, at: usize, head_end: Option<usize>) -> Fault {
        let is_in_body = self.state.is_in_body() || matches!(self.section, Section::Trailers);
        match head_end {
            Some(end) => Fault { at: end, within: Part::Head },
            None if is_in_body => Fault { at, within: Part::Body },
            None => Fault { at, within: Part::Head },
        }
    }

    fn end_of_counted(&mut self) {
        match self.state {
            State::Length(0) => self.state = State::Start,
            State::Chunk(0) => self.state = State::ChunkCr,
            _ => {}
        }
    }

    /// The state after a byte; none if the byte may not come here.
    fn next(&mut self, byte: u8) -> Option<State> {
        match (self.state, byte) {
            (State::Start, b'\r') => Some(State::StartLf),
            (State::StartLf, b'\n') => Some(State::Start),
            (State::Start, byte) if is_token(byte) => Some(State::RequestLine),
            (State::RequestLine, b'\r') => Some(State::LineLf),
            // No fragment: it would be cut off on the way.
            (State::RequestLine, b' '..=b'~' | 0x80..) if byte != b'#' => Some(State::RequestLine),
            (State::LineLf, b'\n') => Some(State::LineStart),
            (State::LineStart, b'\r') => Some(State::SectionLf),
            (State::LineStart, byte) => {
                self.word.clear();
                self.name(byte)
            }
            (State::Name, b':') => self.colon(),
            (State::Name, byte) => self.name(byte),
            (State::Value, b'\r') => self.end_of_value(),
            (State::Value, b'\t' | b' '..=b'~' | 0x80..) => self.value(byte),
            (State::SectionLf, b'\n') => Some(self.end_of_section()),
            (state, byte) => chunk(state, byte).inspect(|next| {
                if matches!((state, next), (State::ChunkSizeLf(_), State::LineStart)) {
                    self.section = Section::Trailers;
                }
            }),
        }
    }

    fn name(&mut self, byte: u8) -> Option<State> {
        self.word.push(byte);
        is_token(byte).then_some(State::Name)
    }

    fn colon(&mut self) -> Option<State> {
        self.field = if self.word.is(b"content-length") {
            Field::Length
        } else if self.word.is(b"transfer-encoding") {
            Field::Encoding
        } else {
            Field::Other
        };
        self.message.upgrade |= self.word.is(b"upgrade");
        self.word.clear();
        match (self.section, self.field) {
            (Section::Trailers, Field::Length | Field::Encoding) => None,
            _ => Some(State::Value),
        }
    }

    /// The value of a field that matters is one word with spaces around it.
    fn value(&mut self, byte: u8) -> Option<State> {
        if let Field::Length | Field::Encoding = self.field {
            self.word.push_spaced(byte)?;
        }
        Some(State::Value)
    }

    fn end_of_value(&mut self) -> Option<State> {
        let is_first = self.message.length.is_none() && !self.message.chunked;
        match self.field {
            Field::Other => {}
            Field::Length if is_first => self.message.length = Some(length(self.word.bytes()?)?),
            Field::Encoding if is_first && self.word.is(b"chunked") => self.message.chunked = true,
            Field::Length | Field::Encoding => return None,
        }
        Some(State::LineLf)
    }

    fn end_of_section(&mut self) -> State {
        let section = take(&mut self.section);
        let Message { length, chunked, upgrade } = take(&mut self.message);
        self.message.upgrade = upgrade;
        match (section, length) {
            (Section::Head, _) if chunked => State::ChunkStart,
            (Section::Head, Some(length)) if length > 0 => State::Length(length),
            _ => State::Start,
        }
    }
}

/// The state after a byte around chunks.
fn chunk(state: State, byte: u8) -> Option<State> {
    match (state, byte) {
        (State::ChunkStart, byte) => digit(byte).map(|digit| State::ChunkSize { size: digit, digits: 1 }),
        (State::ChunkSize { size, .. } | State::ChunkExtension(size), b'\r') => {
            Some(State::ChunkSizeLf(size))
        }
        (State::ChunkSize { size, .. }, b';')
        | (State::ChunkExtension(size), b'\t' | b' '..=b'~' | 0x80..) => Some(State::ChunkExtension(size)),
        (State::ChunkSize { size, digits }, byte) if digits < SIZE_DIGITS => {
            digit(byte).map(|digit| State::ChunkSize { size: size << 4 | digit, digits: digits + 1 })
        }
        (State::ChunkSizeLf(0), b'\n') => Some(State::LineStart),
        (State::ChunkSizeLf(size), b'\n') => Some(State::Chunk(size)),
        (State::ChunkCr, b'\r') => Some(State::ChunkLf),
        (State::ChunkLf, b'\n') => Some(State::ChunkStart),
        _ => None,
    }
}

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

/// A length in digits. One that begins with a zero is octal to some.
fn length(digits: &[u8]) -> Option<u64> {
    let is_plain =
        !digits.is_empty() && digits.len() <= LENGTH_DIGITS && digits.iter().all(u8::is_ascii_digit);
    let is_octal = digits.len() > 1 && digits.starts_with(b"0");
    let text = std::str::from_utf8(digits).ok().filter(|_| is_plain && !is_octal)?;
    text.parse().ok()
}
