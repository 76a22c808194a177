use super::{Fault, Framing, Part};

/// What becomes of bytes that come at once.
fn checked(bytes: &str) -> Result<(), Fault> {
    Framing::default().check(bytes.as_bytes())
}

fn head_at(at: usize) -> Result<(), Fault> {
    Err(Fault { at, within: Part::Head })
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn what_has_one_reading_passes() {
    for (name, bytes) in [
        ("no body", "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("no fields", "GET / HTTP/1.0\r\n\r\n".to_owned()),
        ("an empty line ahead", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("two", "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        (
            "a length",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n\0\r\n\n:GET / HTTP/1.1\r\n\r\n".to_owned(),
        ),
        (
            "a length of nothing",
            "POST / HTTP/1.1\r\ncontent-length:0\r\n\r\nGET / HTTP/1.1\r\n\r\n".to_owned(),
        ),
        ("spaces around it", "POST / HTTP/1.1\r\nContent-Length: \t5 \r\n\r\nhello".to_owned()),
        (
            "chunks",
            format!("{CHUNKED}5\r\nhel\r\n\r\nA;x=\"y\"\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
        ),
        ("trailers", format!("{CHUNKED}0\r\nx-sum: 1\r\n\r\nGET / HTTP/1.1\r\n\r\n")),
        (
            "a name like a length",
            "GET / HTTP/1.1\r\nX-Content-Length: 5\r\nContent-Lengths: 5\r\n\r\n".to_owned(),
        ),
        ("text that is not ASCII", "GET / HTTP/1.1\r\nX: \u{e4}\r\n\r\n".to_owned()),
        ("a wish for another protocol", "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n".to_owned()),
    ] {
        assert_eq!(checked(&bytes), Ok(()), "{name}");
        let mut framing = Framing::default();
        for byte in bytes.bytes() {
            assert_eq!(framing.check(&[byte]), Ok(()), "{name}, byte by byte");
        }
    }
}

#[test]
fn a_fault_breaks_off_where_it_stands() {
    for (name, bytes, expected) in [
        ("not a request", "\0GET", head_at(0)),
        ("a bare line feed", "GET / HTTP/1.1\nHost: a\r\n\r\n", head_at(14)),
        ("a bare line feed at the end", "GET / HTTP/1.1\r\nA: b\r\n\nGET", head_at(22)),
        ("in the second", "GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\n", head_at(32)),
        ("bytes behind a wish", "GET / HTTP/1.1\r\nUpgrade: x\r\n\r\nGET / HTTP/1.1\r\n\r\n", head_at(29)),
    ] {
        assert_eq!(checked(bytes), expected, "{name}");
    }
}

#[test]
fn a_fault_in_a_body_takes_the_head_along_while_nobody_has_it() {
    let bytes = format!("{CHUNKED}5\nhello");
    assert_eq!(checked(&bytes), head_at(CHUNKED.len() - 1));
    let mut framing = Framing::default();
    assert_eq!(framing.check(CHUNKED.as_bytes()), Ok(()));
    assert_eq!(framing.check(b"5\nhello"), Err(Fault { at: 1, within: Part::Body }));
}

#[test]
fn a_request_after_an_upgrade_that_was_not_granted_passes() {
    let mut framing = Framing::default();
    assert_eq!(framing.check(b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n"), Ok(()));
    assert_eq!(framing.check(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"), Ok(()));
}
