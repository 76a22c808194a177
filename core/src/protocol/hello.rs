//! The server name that a TLS client asks for: [`hello`].
//!
//! Only what leads to the name is read. What a client may say beyond it is the server's to judge, which may
//! accept more than any one library does; see docs/decisions/318.

/// A hello longer than this is none: a record carries 16 KiB at most, and clients send about 2.
pub const HELLO_LIMIT: usize = 16 << 10;

/// What the first bytes of a connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// A client's hello, with the name in lower case if it gives one.
    Client {
        /// The name.
        server_name: Option<String>,
    },
    /// Not all of it has come.
    Incomplete,
    /// Not TLS, or nothing that a server could understand.
    NotTls,
}

/// The content type of a handshake record.
const HANDSHAKE: u8 = 22;
/// The type of a ClientHello.
const CLIENT_HELLO: u8 = 1;
/// The extension `server_name` (RFC 6066).
const SERVER_NAME: u16 = 0;
/// The type of a name that is a DNS name.
const HOST_NAME: u8 = 0;

/// Reads what has come so far.
pub fn hello(bytes: &[u8]) -> Hello {
    match message(bytes) {
        Ok(Some(message)) => match server_name(&message) {
            Ok(server_name) => Hello::Client { server_name },
            Err(NotTls) => Hello::NotTls,
        },
        Ok(None) if bytes.len() < HELLO_LIMIT => Hello::Incomplete,
        Ok(None) | Err(NotTls) => Hello::NotTls,
    }
}

struct NotTls;

/// The body of the hello, put together from its records. None: more must come.
fn message(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, NotTls> {
    let mut message = Vec::new();
    loop {
        if let [kind, rest @ ..] = &message[..] {
            if *kind != CLIENT_HELLO {
                return Err(NotTls);
            }
            if let [high, middle, low, body @ ..] = rest {
                let length = (usize::from(*high) << 16) | (usize::from(*middle) << 8) | usize::from(*low);
                if length > HELLO_LIMIT {
                    return Err(NotTls);
                }
                if let Some(body) = body.get(..length) {
                    return Ok(Some(body.to_vec()));
                }
            }
        }
        match bytes {
            [] | [HANDSHAKE] | [HANDSHAKE, 3] | [HANDSHAKE, 3, _] | [HANDSHAKE, 3, _, _] => return Ok(None),
            [HANDSHAKE, 3, _, high, low, rest @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > HELLO_LIMIT {
                    return Err(NotTls);
                }
                message.extend_from_slice(&rest[..length.min(rest.len())]);
                let Some(rest) = rest.get(length..) else { return check_start(&message) };
                bytes = rest;
            }
            _ => return Err(NotTls),
        }
    }
}

/// Of a record that has not come to its end the start is looked at already: what is none need not be waited
/// for.
fn check_start(message: &[u8]) -> Result<Option<Vec<u8>>, NotTls> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) { Err(NotTls) } else { Ok(None) }
}

/// The name in a hello's body, if it has one.
fn server_name(body: &[u8]) -> Result<Option<String>, NotTls> {
    let mut rest = Reader(body);
    // The version and the random.
    rest.take(2 + 32)?;
    let session = rest.u8()?.into();
    rest.take(session)?;
    let suites = rest.u16()?.into();
    rest.take(suites)?;
    let compressions = rest.u8()?.into();
    rest.take(compressions)?;
    if rest.0.is_empty() {
        // Extensions may be left out.
        return Ok(None);
    }
    let length = rest.u16()?.into();
    let mut extensions = Reader(rest.take(length)?);
    while !extensions.0.is_empty() {
        let (kind, length) = (extensions.u16()?, extensions.u16()?.into());
        let value = extensions.take(length)?;
        if kind == SERVER_NAME {
            return host_name(value).map(Some);
        }
    }
    Ok(None)
}

fn host_name(value: &[u8]) -> Result<String, NotTls> {
    let mut rest = Reader(value);
    let length = rest.u16()?.into();
    let mut names = Reader(rest.take(length)?);
    let (kind, length) = (names.u8()?, names.u16()?.into());
    let name = names.take(length)?;
    let name = std::str::from_utf8(name).ok().filter(|name| kind == HOST_NAME && name.is_ascii());
    name.map(str::to_ascii_lowercase).ok_or(NotTls)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], NotTls> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(NotTls)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, NotTls> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Result<u16, NotTls> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}
