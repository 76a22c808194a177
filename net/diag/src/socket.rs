//! What is known of a socket: [`TcpSocket`].

use std::net::SocketAddr;

/// The states of a TCP socket that has a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `TCP_ESTABLISHED`: open.
    Established,
    /// `TCP_SYN_SENT`: connecting.
    SynSent,
    /// `TCP_SYN_RECV`: being connected to.
    SynReceived,
    /// `TCP_FIN_WAIT1`: has closed; its FIN is not yet acknowledged.
    FinWait1,
    /// `TCP_FIN_WAIT2`: has closed, and the peer knows.
    FinWait2,
    /// `TCP_CLOSE_WAIT`: the peer has closed.
    CloseWait,
    /// `TCP_LAST_ACK`: both have closed, the peer first; the own FIN is not yet acknowledged.
    LastAck,
    /// `TCP_CLOSING`: both have closed at once.
    Closing,
}

/// A TCP socket that has a peer, as it was a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its own address, in canonical form: IPv4 on an IPv6 socket is IPv4.
    pub local: SocketAddr,
    /// The peer's address, in canonical form.
    pub remote: SocketAddr,
    /// The kernel's number of the socket, never given to another.
    pub cookie: u64,
    /// The interface that it is bound to, or that its link-local peer is on; 0: none.
    pub interface: u32,
    /// Its state.
    pub state: State,
    /// As the kernel counts: sequence numbers that the peer acknowledged. The FIN is one, and where the
    /// socket is the client's so is the SYN.
    pub acknowledged: u64,
    /// As the kernel counts: sequence numbers that came in order. The peer's FIN is one; its SYN is not.
    pub arrived: u64,
    /// Whether it was accepted by a listener rather than connected, where its counts tell.
    pub accepted: Option<bool>,
    /// Whether one of the maps that were asked for has an entry for it.
    pub stored: bool,
}

impl TcpSocket {
    /// The bytes that a server's socket sent and its peer has.
    pub fn sent_by_server(&self) -> u64 {
        let own_end = matches!(self.state, State::FinWait2);
        self.acknowledged.saturating_sub(own_end.into())
    }

    /// The bytes that came from the peer, read or not.
    pub fn received(&self) -> u64 {
        let peers_end = matches!(self.state, State::CloseWait | State::LastAck | State::Closing);
        self.arrived.saturating_sub(peers_end.into())
    }
}
