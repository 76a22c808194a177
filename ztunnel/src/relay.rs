//! The bytes of a connection, from when it is open to its report: [`run`].

use ambit_core::Reason;
use ambit_daemon_kit::telemetry::connection::Ending;
use ambit_hbone::Tunnel;
use ambit_hbone::relay::{self, End, Outcome};
use tokio::net::TcpStream;

use crate::connections::Registered;
use crate::daemon::Node;
use crate::report;

/// The end that is not the application's socket on this node.
pub(crate) enum Far {
    Tunnel(Tunnel),
    Plain(TcpStream),
}

/// Carries the bytes until both directions have ended, one end resets, the connection is no longer allowed,
/// or the daemon's time is up; then reports. In the last two cases dropping the relay resets both ends.
pub(crate) async fn run(node: &Node, registered: Registered, near: TcpStream, far: Far) {
    let ending = {
        let traffic = registered.traffic();
        let carried = async {
            match far {
                Far::Tunnel(tunnel) => relay::tunnel(near, tunnel, traffic).await,
                Far::Plain(stream) => relay::tcp(near, stream, traffic).await,
            }
        };
        tokio::select! {
            outcome = carried => ending(&outcome),
            denied = registered.denied() => denied,
            () = node.drain.cut() => report::broken(Reason::Drained, "the daemon's time to drain was over"),
        }
    };
    registered.close(ending);
}

fn ending(outcome: &Outcome) -> Ending {
    match &outcome.end {
        End::Closed => report::orderly(),
        End::Tunnel(_) => report::broken(Reason::TunnelFailed, outcome.end.to_string()),
        End::First(_) | End::TunnelReset(_) | End::Second(_) => {
            report::broken(Reason::Reset, outcome.end.to_string())
        }
    }
}
