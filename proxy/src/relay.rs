//! The bytes of a connection, from when it is open to its report: [`run`].

use ambit_core::Reason;
use ambit_daemon_kit::drain::Drain;
use ambit_hbone::Tunnel;
use ambit_hbone::relay::{self, End, Outcome};
use tokio::net::TcpStream;

use crate::connections::Registered;
use crate::report::{Ending, ending};

/// The side of a relay that is not the application's socket on this node.
#[derive(Debug)]
pub enum Remote {
    /// An HBONE tunnel.
    Tunnel(Tunnel),
    /// A TCP connection.
    Plain(TcpStream),
}

/// Carries the bytes until both directions have ended, one side resets, the connection is no longer allowed,
/// or the drain's deadline has passed; then reports. In the last two cases dropping the relay resets both
/// sides.
pub async fn run(drain: &Drain, registered: Registered, application: TcpStream, remote: Remote) {
    let ending = {
        let traffic = registered.traffic();
        let carried = async {
            match remote {
                Remote::Tunnel(tunnel) => relay::tunnel(application, tunnel, traffic).await,
                Remote::Plain(stream) => relay::tcp(application, stream, traffic).await,
            }
        };
        tokio::select! {
            outcome = carried => ending_of(&outcome),
            denied = registered.denied() => denied,
            () = drain.cut() => ending::broken(Reason::Drained, "the deadline of the drain has passed"),
        }
    };
    registered.close(ending);
}

/// How a relay's end is reported.
pub fn ending_of(outcome: &Outcome) -> Ending {
    match &outcome.end {
        End::Closed => ending::orderly(),
        End::Tunnel(_) => ending::broken(Reason::TunnelFailed, outcome.end.to_string()),
        End::First(_) | End::TunnelReset(_) | End::Second(_) => {
            ending::broken(Reason::Reset, outcome.end.to_string())
        }
    }
}
