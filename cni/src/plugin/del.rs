//! DEL: what the node's ztunnel permitted for the pod ends before its addresses are released, which the
//! plugins before this one do after it.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use super::add::SOURCE;
use super::log;
use super::protocol::{self, Environment};

/// The deadline of ztunnel's answer. Where there is none, what it permitted ends with its lease.
const DEADLINE: Duration = Duration::from_secs(1);

/// Tells ztunnel that the pod ends. Nothing that fails here keeps a pod from being deleted.
pub(super) fn del(environment: &Environment, input: &[u8]) {
    // Without a namespace it has ended already, and ztunnel has seen that.
    let Ok(path) = protocol::network_namespace(environment) else { return };
    let (Ok(entry), Ok(namespace)) = (protocol::entry(input), File::open(path)) else { return };
    let told = SOURCE
        .parse()
        .and_then(|source| ambit_enrol::ending_once(&entry.socket, &source, namespace.as_fd(), DEADLINE));
    if let Err(error) = told {
        log::line(entry.log_file.as_deref(), &format!("DEL: {}", ambit_core::chain(&error)));
    }
}
