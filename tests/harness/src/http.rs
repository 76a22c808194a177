//! A small HTTP/1.1 client for the daemons' own endpoints, from inside a namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

const TIMEOUT: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

impl Response {
    /// The body of a 2xx answer.
    pub fn ok(self) -> Result<String> {
        if (200..300).contains(&self.status) {
            Ok(self.body)
        } else {
            bail!("HTTP {}: {}", self.status, self.body)
        }
    }
}

/// `GET path`.
pub fn get(netns: &Netns, address: SocketAddr, path: &str) -> Result<Response> {
    request(netns, "GET", address, path)
}

/// Any method without a body.
pub fn request(netns: &Netns, method: &str, address: SocketAddr, path: &str) -> Result<Response> {
    netns
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: \
                 close\r\n\r\n"
            );
            stream.write_all(head.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            parse(&answer)
        })?
        .with_context(|| format!("failed to {method} http://{address}{path} in {}", netns.name()))
}

fn parse(answer: &[u8]) -> Result<Response> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no end of headers")?;
    let head = std::str::from_utf8(&answer[..end]).context("failed to read headers as text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?;
    let status = status.parse().context("failed to parse the status")?;
    let chunked = lines.any(|line| line.to_ascii_lowercase().replace(' ', "") == "transfer-encoding:chunked");
    let body = &answer[end + 4..];
    let body = if chunked { unchunk(body)? } else { body.to_vec() };
    Ok(Response { status, body: String::from_utf8_lossy(&body).into_owned() })
}

fn unchunk(mut body: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|window| window == b"\r\n").context("a chunk without its size")?;
        let size = std::str::from_utf8(&body[..end])?.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).context("failed to parse a chunk's size")?;
        let chunk = body.get(end + 2..end + 2 + size).context("a chunk is cut short")?;
        if size == 0 {
            return Ok(whole);
        }
        whole.extend_from_slice(chunk);
        body = body.get(end + 4 + size..).context("a chunk without its end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn http_answers_are_parsed() {
        let rows: [(&str, &str, u16, &str); 3] = [
            ("plain", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi"),
            ("error", "HTTP/1.1 503 Service Unavailable\r\n\r\nwait", 503, "wait"),
            (
                "chunked",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
                200,
                "abcde",
            ),
        ];
        for (name, answer, status, body) in rows {
            let got = parse(answer.as_bytes()).expect(name);
            assert_eq!((got.status, got.body.as_str()), (status, body), "{name}");
        }
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc").is_err());
    }
}
