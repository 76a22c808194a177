//! Connections that the kernel could not track, because its map of flows is full: [`close`].

use std::time::Instant;

use ambit_core::{Reason, chain};
use ambit_loader::Record;
use ambit_proxy::report::ending;

use super::context::Context;

/// Closes a connection that the kernel could not track: the next change of policy would not find it.
pub(super) fn close(context: &Context, record: &Record) {
    let Some((cookie, client)) = record.server_cookie.zip(record.client) else { return };
    let Some(uid) = record.destination.and_then(|number| context.names.uid(number)) else { return };
    let Some(pod) = context.pods.get(&uid) else { return };
    let error = "too many connections that the kernel carries";
    let ending = ending::broken(Reason::FlowsExhausted, error);
    context.cut.lock().insert((client, record.server), (Instant::now(), ending));
    match pod.with_diag(|diag| diag.destroy(record.server, client, cookie)) {
        Ok(_closed_or_gone) => {
            tracing::warn!(%uid, %client, server = %record.server, "untracked connection closed");
        }
        Err(error) => {
            let error = chain(&error);
            tracing::error!(%uid, %client, server = %record.server, error, "failed to close a connection");
        }
    }
}
