//! What a reference to a backend names: [`target`].

use ambit_core::derive::{BackendTarget, RuleEffect};

use super::notes::Notes;
use crate::gateway_api as written;

pub(super) fn target(
    notes: &mut Notes<'_>,
    field: &str,
    reference: written::ObjectReference,
) -> BackendTarget {
    let written::ObjectReference { group, kind, namespace, name, port } = reference;
    let number = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    if port.is_some() && number.is_none() {
        notes.add(&format!("{field}.port"), "is not a port: 1 to 65535", RuleEffect::Fails);
    }
    BackendTarget {
        field: format!("{}.{field}", notes.at),
        group: group.unwrap_or_default(),
        kind: kind.unwrap_or_else(|| "Service".to_owned()),
        namespace,
        name,
        port: number,
    }
}
