//! A connection of one of this node's applications, captured in `connect()`: [`serve`] reads its original
//! destination and hands it to `ambit_proxy::outbound`, which decides where it goes.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use ambit_core::{Reason, chain};
use ambit_loader::Captured;
use ambit_proxy::outbound::{self, Accepted, Asked};
use ambit_proxy::report::{Ending, ending};
use ambit_proxy::shares::Held;
use tokio::net::TcpStream;

use crate::node::Node;
use crate::pods::Pod;

/// Carries one connection from its acceptance to its report. A tunnel within the node may be the last one of
/// its pair: the kernel caches that later connections may go direct.
pub(crate) async fn serve(node: Arc<Node>, pod: Arc<Pod>, stream: TcpStream, client: SocketAddr, held: Held) {
    let asked = captured(&node, &stream);
    let accepted = Accepted { stream, client, asked, held: Some(held) };
    let (proxy, pool, direct) = (node.proxy.clone(), node.pool.clone(), node.direct.clone());
    drop(node);
    let opened = move |pod: &Pod, tunnel: &_, asked| direct.remember(pod, tunnel, asked);
    outbound::serve(proxy, pool, pod, accepted, opened).await;
}

fn captured(node: &Node, stream: &TcpStream) -> Result<Asked, Ending> {
    let missing = |error| ending::unmade(Reason::OriginalDestinationMissing, error);
    match node.dataplane.original_destination(stream.as_fd()) {
        Ok(Some(Captured { original_destination, chosen })) => {
            Ok(Asked { destination: original_destination, chosen, captures_all: node.capture.captures_all() })
        }
        Ok(None) => Err(missing("not captured: an application dialled the daemon itself".to_owned())),
        Err(error) => Err(missing(chain(&error))),
    }
}
