//! What the parts of the direct path share: [`Context`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ambit_loader::Dataplane;
use ambit_proxy::proxy::Proxy;
use ambit_proxy::report::Ending;
use parking_lot::Mutex;

use super::counted::Counted;
use super::names::Names;
use crate::links::Links;
use crate::pods::Pods;

/// A connection's client and server address.
pub(super) type FlowKey = (SocketAddr, SocketAddr);

pub(super) struct Context {
    /// Whether verdicts are cached at all.
    pub(super) enabled: bool,
    /// The name of this node.
    pub(super) node: String,
    pub(super) dataplane: Arc<Dataplane>,
    pub(super) pods: Arc<Pods>,
    pub(super) proxy: Arc<Proxy>,
    pub(super) names: Names,
    pub(super) links: Arc<Links>,
    /// Connections that were closed by this daemon, when and why: their records say only that they were
    /// reset.
    pub(super) cut: Mutex<HashMap<FlowKey, (Instant, Ending)>>,
    /// What the metrics know of open connections.
    pub(super) counted: Counted,
    /// Held while records are taken, by one thread at a time: they are reported in order.
    pub(super) draining: Mutex<()>,
}
