//! Bytes of an HTTP/1 connection. A fault does not depend on how they are cut into reads, and of what is
//! accepted a lenient reader, which stands on the parser that hyper has, finds the same requests.
#![no_main]

use ambit_waypoint::framing::{Fault, Framing, Part};
use libfuzzer_sys::fuzz_target;

/// The first byte says how the others are cut.
fn cut(data: &[u8]) -> Option<(usize, &[u8])> {
    let (first, bytes) = data.split_first()?;
    Some((usize::from(*first) % 32 + 1, bytes))
}

fn in_pieces(bytes: &[u8], size: usize) -> Result<(), usize> {
    let mut framing = Framing::default();
    for (index, piece) in bytes.chunks(size).enumerate() {
        framing.check(piece).map_err(|fault| index * size + fault.at)?;
    }
    Ok(())
}

/// How the body of a request is delimited.
enum Body {
    Length(usize),
    Chunks,
}

/// The end of a head, and its body. `None` where the parser has no whole head or wants none of it.
fn head(bytes: &[u8]) -> Option<(usize, Body)> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(end)) = request.parse(bytes) else { return None };
    let of = |name: &str| {
        let fields = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        fields.map(|field| field.value.trim_ascii()).collect::<Vec<_>>()
    };
    let (lengths, encodings) = (of("content-length"), of("transfer-encoding"));
    match (&lengths[..], &encodings[..]) {
        ([], []) => Some((end, Body::Length(0))),
        ([length], []) => {
            assert!(!length.is_empty() && length.iter().all(u8::is_ascii_digit), "one length, in digits");
            let length = std::str::from_utf8(length).expect("digits").parse().expect("short");
            Some((end, Body::Length(length)))
        }
        ([], [encoding]) => {
            assert!(encoding.eq_ignore_ascii_case(b"chunked"), "one encoding, which is chunked");
            Some((end, Body::Chunks))
        }
        _ => panic!("more than one word about a body: {lengths:?} {encodings:?}"),
    }
}

/// What is left behind a body, where it is all there.
fn behind_chunks(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let parsed = httparse::parse_chunk_size(bytes).expect("a size that was accepted");
        let httparse::Status::Complete((start, size)) = parsed else { return None };
        if size == 0 {
            return behind_trailers(&bytes[start..]);
        }
        let end = start.checked_add(usize::try_from(size).expect("64 bits")).expect("short");
        let rest = bytes.get(end..)?;
        if rest.len() < 2 {
            return None;
        }
        bytes = rest.strip_prefix(b"\r\n").expect("the end of a chunk");
    }
}

fn behind_trailers(bytes: &[u8]) -> Option<&[u8]> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    match httparse::parse_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete((end, _))) => Some(&bytes[end..]),
        _ => None,
    }
}

/// Reads all requests as a server does that is lenient.
fn read(mut bytes: &[u8]) {
    while let Some((end, body)) = head(bytes) {
        let rest = &bytes[end..];
        let next = match body {
            Body::Length(length) => rest.get(length..),
            Body::Chunks => behind_chunks(rest),
        };
        let Some(next) = next else { return };
        // The next one begins as a request does, or the two disagree about where this one ends.
        let first = next.iter().find(|byte| !b"\r\n".contains(byte));
        assert!(first.is_none_or(|byte| byte.is_ascii_graphic()), "not the beginning of a request");
        bytes = next;
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((size, bytes)) = cut(data) else { return };
    let at_once = Framing::default().check(bytes);
    let one_by_one = in_pieces(bytes, 1);
    match at_once {
        Ok(()) => {
            // At once there is more that may be refused together: bytes behind a wish to upgrade.
            assert_eq!(one_by_one, Ok(()), "what passes at once passes one by one");
            read(bytes);
        }
        Err(Fault { at, within: Part::Head | Part::Body }) => {
            assert!(at < bytes.len(), "a fault is at a byte");
            assert_eq!(Framing::default().check(&bytes[..at]), Ok(()), "what may be used is good");
            if let Err(later) = one_by_one {
                assert!(at <= later, "nothing is refused at once that could be used: {at}, {later}");
            }
        }
    }
    if let (Err(small), Err(whole)) = (in_pieces(bytes, size), one_by_one) {
        assert!(small <= whole, "larger reads refuse no later");
    }
});
