//! Ports that a pod excludes from capture, from the annotations that Istio's users know ([`read`]), and their
//! description for [`NOT_CAPTURED`](super::NOT_CAPTURED) ([`describe`]).
//!
//! An annotation with a mistake excludes no port: a port that is captured by mistake fails visibly, a port
//! that is excluded by mistake is sent in plaintext silently.

use std::collections::BTreeSet;
use std::fmt;

use super::Labels;
use crate::inbound::HBONE_PORT;
use crate::model::ExcludedPorts;

/// The pod's connections to these ports are not captured.
pub const OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";

/// Plaintext to these ports of the pod is not captured.
pub const INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";

/// The most ports in one list: the kernel's map of ports is shared by all pods of a node.
pub const MAX_PORTS: usize = 128;

/// An annotation that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The annotation's name.
    pub annotation: &'static str,
    /// What is wrong with its value.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.annotation, self.message)
    }
}

/// The ports that a pod's annotations exclude, and the mistakes in them.
pub fn read(annotations: &Labels) -> (ExcludedPorts, Vec<Mistake>) {
    let mut mistakes = Vec::new();
    let mut list = |annotation, reserved: &[u16]| {
        let text = annotations.get(annotation).map_or("", String::as_str);
        ports(text, reserved).unwrap_or_else(|message| {
            mistakes.push(Mistake { annotation, message });
            BTreeSet::new()
        })
    };
    let inbound = list(INBOUND_PORTS, &[HBONE_PORT]);
    let outbound = list(OUTBOUND_PORTS, &[]);
    (ExcludedPorts { inbound, outbound }, mistakes)
}

fn ports(text: &str, reserved: &[u16]) -> Result<BTreeSet<u16>, String> {
    if text.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut ports = BTreeSet::new();
    for item in text.split(',').map(str::trim) {
        let digits = item.bytes().all(|byte| byte.is_ascii_digit());
        let port = item.parse().ok().filter(|port| digits && *port != 0);
        let port = port.ok_or_else(|| format!("{:?} is not a port; no port is excluded", shortened(item)))?;
        if reserved.contains(&port) {
            return Err(format!("port {port} is the mesh's own; no port is excluded"));
        }
        ports.insert(port);
    }
    if ports.len() > MAX_PORTS {
        return Err(format!("{} ports are more than {MAX_PORTS}; no port is excluded", ports.len()));
    }
    Ok(ports)
}

/// The start of text of any length, for a message.
fn shortened(text: &str) -> String {
    text.chars().take(32).collect()
}

/// Describes the excluded ports of a captured pod and the mistakes in its annotations; `None` if there are
/// neither.
pub fn describe(annotations: &Labels) -> Option<String> {
    let (excluded, mistakes) = read(annotations);
    let ports = [("inbound", &excluded.inbound), ("outbound", &excluded.outbound)];
    let named = ports.into_iter().filter(|(_, ports)| !ports.is_empty()).map(|(direction, ports)| {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        format!("{direction} ports {}", ports.join(","))
    });
    let said: Vec<String> =
        named.chain(mistakes.iter().map(|mistake| format!("mistake in {mistake}"))).collect();
    (!said.is_empty()).then(|| said.join("; "))
}
