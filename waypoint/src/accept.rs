//! HBONE connections of clients: [`accept`] takes them off the listener, [`connection`] serves one on its
//! worker.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::Reason;
use ambit_hbone::Error as HboneError;
use ambit_proxy::report::{ConnectionInfo, Direction, Ending, Party, Path, ending, failed};
use ambit_proxy::socket;
use tokio::net::{TcpListener, TcpStream};

use crate::metrics::ACCEPT_ERRORS;
use crate::tunnel;
use crate::worker::{Thread, Worker};

/// Wait after an error that trying again at once would repeat, such as no descriptors left.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Gives connections to the workers, one after the other, until the drain begins. What has connected by then
/// is served too: its client was promised as much.
pub async fn accept(listener: TcpListener, threads: Vec<Thread>) {
    let Some(first) = threads.first() else { return };
    let drain = first.worker.waypoint.proxy.drain.clone();
    for thread in threads.iter().cycle() {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = drain.started() => return,
        };
        match accepted {
            Ok((stream, client)) => hand_over(thread, stream, client),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "failed to accept");
                ACCEPT_ERRORS.count();
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// Moves a connection to its worker's runtime.
fn hand_over(thread: &Thread, stream: TcpStream, client: SocketAddr) {
    let Ok(stream) = stream.into_std() else { return };
    let worker = thread.worker.clone();
    let hold = worker.waypoint.proxy.drain.hold();
    thread.handle.spawn(async move {
        let _hold = hold;
        match TcpStream::from_std(stream) {
            Ok(stream) => connection(worker, stream, client).await,
            Err(error) => tracing::warn!(%error, "failed to register a connection"),
        }
    });
}

/// The connection ended before it was accepted; the next is not affected.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Serves one HBONE connection to its end; each tunnel on it gets a task of its own.
pub async fn connection(worker: Arc<Worker>, stream: TcpStream, client: SocketAddr) {
    let since = Instant::now();
    let waypoint = worker.waypoint.clone();
    let (proxy, workload) = (&waypoint.proxy, &waypoint.served.workload);
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let local = stream.local_addr().unwrap_or(client);
    let Some(_held) = proxy.shares.take(&workload.share, 1) else {
        socket::reset(stream);
        return unmade(&worker, client, local, since, &ending::exhausted(&workload.uid));
    };
    let known = proxy.mesh.workload(&workload.uid);
    let aliases = known.map_or_else(Default::default, |workload| workload.trust_domain_aliases.clone());
    let config = match workload.server_config(aliases).await {
        Ok(config) => config,
        Err(error) => {
            socket::reset(stream);
            let ending = ending::unmade(Reason::CertificateMissing, error);
            return unmade(&worker, client, local, since, &ending);
        }
    };
    let handle = {
        let worker = worker.clone();
        move |incoming| tunnel::serve(worker.clone(), incoming)
    };
    let drain = async { proxy.drain.started().await };
    let outcome = tokio::select! {
        outcome = proxy.server.serve(&workload.clients, stream, config, drain, handle) => outcome,
        () = proxy.drain.cut() => return,
    };
    match outcome {
        Ok(()) => {}
        Err(
            error @ (HboneError::Connection { .. }
            | HboneError::PingTimeout { .. }
            | HboneError::CertificateExpired { .. }),
        ) => tracing::debug!(%client, error = error.chain(), "HBONE connection ended"),
        Err(error) => {
            let reason = match error {
                HboneError::TooManyConnections { .. } => Reason::PeerConnectionsExhausted,
                HboneError::TooManyHandshakes => Reason::HandshakesExhausted,
                _ => Reason::TlsFailed,
            };
            unmade(&worker, client, local, since, &ending::unmade(reason, error.chain()));
        }
    }
}

/// Reports a connection that never carried a tunnel.
fn unmade(worker: &Worker, client: SocketAddr, local: SocketAddr, since: Instant, ending: &Ending) {
    let waypoint = &worker.waypoint;
    let workload = waypoint.proxy.mesh.workload(&waypoint.served.workload.uid);
    let info = ConnectionInfo {
        direction: Direction::Through,
        path: Path::Waypoint,
        mutual_tls: false,
        source: Party::at(client),
        destination: Party { address: local, workload, identity: None },
        hbone_address: None,
        client: None,
        service: None,
    };
    failed(&info, since, ending);
}
