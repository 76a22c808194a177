//! What clients speak, by their first bytes.

use ambit_core::protocol::{SNIFFED, Sniffed, sniff};

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
