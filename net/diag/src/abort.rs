//! Whether sockets can be closed from outside at all: [`can_close_sockets`].

use std::io::{self, ErrorKind, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::diag::Diag;
use crate::error::Error;

/// How long the closed socket may take to say so.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Tries it on a connection of its own over loopback. A kernel without `CONFIG_INET_DIAG_DESTROY`, and a
/// process without `CAP_NET_ADMIN`, cannot.
pub fn can_close_sockets() -> Result<bool, Error> {
    let (mut client, server) = pair().map_err(Error::Try)?;
    let ends = |socket: &TcpStream| Ok((socket.local_addr()?, socket.peer_addr()?));
    let (local, remote): (SocketAddr, SocketAddr) = ends(&server).map_err(Error::Try)?;
    let mut diag = Diag::open()?;
    let own = diag.sockets()?.into_iter().find(|socket| socket.local == local && socket.remote == remote);
    let Some(own) = own else { return Ok(false) };
    match diag.destroy(local, remote, own.cookie) {
        Ok(true) => {}
        Ok(false) | Err(Error::Refused { .. }) => return Ok(false),
        Err(error) => return Err(error),
    }
    // Its peer gets a reset.
    Ok(client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset))
}

fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    client.set_read_timeout(Some(TIMEOUT))?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}
