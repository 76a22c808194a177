//! Accepts connections on a pod's listeners, one task a listener, and hands each to its own task.
//!
//! Entry point: [`start`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambit_proxy::shares::Held;
use ambit_proxy::{inbound, socket};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::metrics::ACCEPT_ERRORS;
use crate::node::Node;
use crate::outbound;
use crate::pods::{Accepting, Listeners, Pod, Role};

/// Wait after an error that trying again at once would repeat, such as no descriptors left.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Starts accepting on all of a pod's listeners, in place of those that it had.
pub(crate) fn start(node: &Arc<Node>, pod: &Arc<Pod>, listeners: Listeners) -> Result<(), Error> {
    let failed = |source| Error::System { operation: "register a listener", source };
    let mut accepting = Accepting { listeners: Vec::new(), stop: CancellationToken::new() };
    let mut tasks = Vec::new();
    for (role, family, socket) in listeners.into_sockets() {
        let listener = Arc::new(TcpListener::from_std(socket.into()).map_err(failed)?);
        accepting.listeners.push((role, family, Arc::downgrade(&listener)));
        tasks.push(accept(node.clone(), pod.clone(), role, listener, accepting.stop.clone()));
    }
    pod.set_accepting(accepting);
    for task in tasks {
        tokio::spawn(task);
    }
    Ok(())
}

async fn accept(
    node: Arc<Node>,
    pod: Arc<Pod>,
    role: Role,
    listener: Arc<TcpListener>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = pod.workload.released.cancelled() => return,
            () = stop.cancelled() => return,
            () = node.proxy.drain.started() => return,
        };
        match accepted {
            Ok((stream, client)) => take(&node, &pod, role, stream, client),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(uid = %pod.workload.uid, ?role, %error, "failed to accept");
                ACCEPT_ERRORS.count([role.as_str()]);
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// The connection ended before it was accepted; the next is not affected.
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

fn take(node: &Arc<Node>, pod: &Arc<Pod>, role: Role, stream: TcpStream, client: SocketAddr) {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let client = canonical(client);
    let Ok(local) = stream.local_addr().map(canonical) else {
        // Already reset by its client.
        return;
    };
    let (node, pod) = (node.clone(), pod.clone());
    // Captured connections and plaintext are two sockets; tunnels take their application's when they are
    // opened.
    let descriptors = if role == Role::Hbone { 1 } else { 2 };
    // Inbound connections come by the pod's own address; an application that found the port comes by
    // loopback.
    if role != Role::Outbound && local.ip().is_loopback() {
        tracing::debug!(uid = %pod.workload.uid, ?role, %client, "refused a connection from within the pod");
        return socket::reset(stream);
    }
    if let Some(held) = node.proxy.shares.take(&pod.workload.share, descriptors) {
        return start_serving(node, pod, role, stream, (client, local), held);
    }
    socket::reset(stream);
    match role {
        Role::Outbound => ambit_proxy::outbound::exhausted(&pod.workload, client),
        Role::Hbone | Role::Plaintext => {
            inbound::exhausted(&node.proxy.mesh, &pod.workload, client, local);
        }
    }
}

fn start_serving(
    node: Arc<Node>,
    pod: Arc<Pod>,
    role: Role,
    stream: TcpStream,
    (client, local): (SocketAddr, SocketAddr),
    held: Held,
) {
    let (proxy, drain) = (node.proxy.clone(), node.proxy.drain.clone());
    match role {
        Role::Outbound => drop(drain.spawn(outbound::serve(node, pod, stream, client, held))),
        Role::Hbone => drop(drain.spawn(async move {
            let _held = held;
            inbound::tunnels(proxy, pod, stream, client).await;
        })),
        Role::Plaintext => drop(drain.spawn(async move {
            let _held = held;
            inbound::plaintext(proxy, pod, stream, client, local).await;
        })),
    }
}
