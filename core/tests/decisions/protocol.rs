//! What clients speak, by their first bytes.

use ambit_core::protocol::{HELLO_LIMIT, Hello, SNIFFED, Sniffed, hello, sniff};
use proptest::prelude::*;

#[test]
fn first_bytes_decide() {
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(SNIFFED));
    let rows: &[(&str, &[u8], Sniffed)] = &[
        ("nothing", b"", Sniffed::Undecided),
        ("a request line", b"GET / HTTP/1.1\r\nHost: a\r\n", Sniffed::Http1),
        ("of HTTP/1.0", b"GET / HTTP/1.0\r\n", Sniffed::Http1),
        ("with a bare line feed", b"GET / HTTP/1.1\n", Sniffed::Http1),
        ("a method of one's own", b"PURGE-ALL /x HTTP/1.1\r\n", Sniffed::Http1),
        ("behind a blank line", b"\r\nGET / HTTP/1.1\r\n", Sniffed::Http1),
        ("half a request line", b"GET / HT", Sniffed::Undecided),
        ("half a method", b"GE", Sniffed::Undecided),
        ("an endless request line", &long.as_bytes()[..SNIFFED], Sniffed::Http1),
        ("the preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Sniffed::Http2),
        ("half the preface", b"PRI * HT", Sniffed::Undecided),
        ("a client hello", &[0x16, 3, 1, 2, 0], Sniffed::Tls),
        ("the beginning of one", &[0x16], Sniffed::Undecided),
        ("SMTP", b"EHLO there\r\n", Sniffed::Tcp),
        ("Redis", b"*1\r\n$4\r\nPING\r\n", Sniffed::Tcp),
        ("an inline command of Redis", b"PING\r\n", Sniffed::Tcp),
        ("memcached", b"get key\r\n", Sniffed::Tcp),
        ("MySQL", &[0x4a, 0, 0, 0, 0x0a], Sniffed::Tcp),
        ("a long word", b"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz", Sniffed::Tcp),
        ("HTTP/2 by request line", b"GET / HTTP/2.0\r\n", Sniffed::Tcp),
    ];
    for (name, bytes, expected) in rows {
        assert_eq!(sniff(bytes), *expected, "{name}");
    }
}

/// A TLS record of a handshake.
fn record(fragment: &[u8]) -> Vec<u8> {
    let length = u16::try_from(fragment.len()).expect("a record's length");
    [&[22, 3, 1][..], &length.to_be_bytes(), fragment].concat()
}

/// A handshake message of a client's hello with these extensions; `None`: without the field.
fn handshake(extensions: Option<&[u8]>) -> Vec<u8> {
    let short = |bytes: &[u8]| u16::try_from(bytes.len()).expect("a short field").to_be_bytes();
    let mut body = [&[3, 3][..], &[7; 32], &[4, 1, 2, 3, 4], &[0, 2, 0x13, 1], &[1, 0]].concat();
    if let Some(extensions) = extensions {
        body.extend_from_slice(&short(extensions));
        body.extend_from_slice(extensions);
    }
    [&[1, 0][..], &short(&body), &body].concat()
}

fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("a short field");
    [&kind.to_be_bytes()[..], &length.to_be_bytes(), value].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    let length = u16::try_from(name.len()).expect("a short name");
    let entry = [&[0][..], &length.to_be_bytes(), name].concat();
    let length = u16::try_from(entry.len()).expect("a short list");
    extension(0, &[&length.to_be_bytes()[..], &entry].concat())
}

fn client(name: Option<&str>) -> Hello {
    Hello::Client { server_name: name.map(str::to_owned) }
}

#[test]
fn the_server_name_of_a_hello() {
    let other = extension(43, &[2, 3, 4]);
    let named = handshake(Some(&[other.clone(), server_name(b"Cart.Example.com")].concat()));
    let long = extension(21, &[0; 9000]);
    let broken = extension(0, &[0, 9, 0, 0, 9, b'a']);
    let rows: Vec<(&str, Vec<u8>, Hello)> = vec![
        ("with a name", record(&named), client(Some("cart.example.com"))),
        (
            "behind a long one",
            record(&handshake(Some(&[long, server_name(b"a.b")].concat()))),
            client(Some("a.b")),
        ),
        ("without a name", record(&handshake(Some(&other))), client(None)),
        ("without extensions", record(&handshake(None)), client(None)),
        (
            "in two records",
            [record(&named[..20]), record(&named[20..])].concat(),
            client(Some("cart.example.com")),
        ),
        (
            "in records of a byte",
            named.iter().flat_map(|byte| record(&[*byte])).collect(),
            client(Some("cart.example.com")),
        ),
        ("with bytes behind it", [record(&named), vec![1, 2]].concat(), client(Some("cart.example.com"))),
        ("nothing", Vec::new(), Hello::Incomplete),
        ("half of it", record(&named)[..30].to_vec(), Hello::Incomplete),
        ("a request", b"GET / HTTP/1.1\r\n".to_vec(), Hello::NotTls),
        ("a server's hello", record(&[2, 0, 0, 0]), Hello::NotTls),
        ("a server's hello, in part", record(&[2; 100])[..7].to_vec(), Hello::NotTls),
        ("an alert", vec![21, 3, 1, 0, 2, 1, 0], Hello::NotTls),
        ("an empty record", record(&[]), Hello::NotTls),
        ("too long a message", record(&[1, 1, 0, 0]), Hello::NotTls),
        ("a broken name", record(&handshake(Some(&broken))), Hello::NotTls),
        ("a name that is not ASCII", record(&handshake(Some(&server_name("ä.b".as_bytes())))), Hello::NotTls),
        ("endless", record(&[1]).repeat(HELLO_LIMIT / 6 + 1), Hello::NotTls),
    ];
    for (row, bytes, expected) in rows {
        assert_eq!(hello(&bytes), expected, "{row}");
    }
}

proptest! {
    #[test]
    fn a_hello_is_read_once_all_of_it_has_come(cuts in proptest::collection::vec(1_usize..40, 0..8)) {
        let message = handshake(Some(&server_name(b"cart.example.com")));
        let mut rest = &message[..];
        let mut bytes = Vec::new();
        for cut in cuts {
            let (part, left) = rest.split_at(cut.min(rest.len()));
            if !part.is_empty() {
                bytes.extend(record(part));
            }
            rest = left;
        }
        if !rest.is_empty() {
            bytes.extend(record(rest));
        }
        for end in 0..bytes.len() {
            prop_assert_eq!(hello(&bytes[..end]), Hello::Incomplete);
        }
        prop_assert_eq!(hello(&bytes), client(Some("cart.example.com")));
    }

    #[test]
    fn any_bytes_are_answered(start in proptest::collection::vec(any::<u8>(), 0..200)) {
        let lead = [22, 3, 1, 0, 150, 1, 0, 0, 100];
        let _any = (hello(&start), hello(&[&lead[..], &start].concat()));
    }
}
