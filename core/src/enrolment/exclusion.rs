//! Ports that a pod keeps out of capture: what its annotations say ([`read`]), and how it is said back to
//! whoever looks at the pod ([`describe`]). The names are those that Istio's users know.
//!
//! An annotation with a mistake in it excludes nothing at all: what is captured by mistake fails loudly, what
//! is not captured by mistake is sent in plaintext silently.

use std::collections::BTreeSet;
use std::fmt;

use super::Labels;
use crate::inbound::HBONE_PORT;
use crate::model::ExcludedPorts;

/// Connections of the pod to these ports are left alone.
pub const OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";

/// What arrives at these ports of the pod in plaintext is let through.
pub const INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";

/// Each list may name so many: the kernel's table of ports is shared by all pods of a node.
pub const MOST_PORTS: usize = 128;

/// An annotation that means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub annotation: &'static str,
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.annotation, self.message)
    }
}

/// What a pod's annotations exclude, and what is wrong with them.
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
    if ports.len() > MOST_PORTS {
        return Err(format!("{} ports are more than {MOST_PORTS}; no port is excluded", ports.len()));
    }
    Ok(ports)
}

/// Of a text that anybody may have written, as much as a message can take.
fn shortened(text: &str) -> String {
    text.chars().take(32).collect()
}

/// What is not captured of a pod that is captured otherwise, for people; `None`: nothing is left out, and no
/// mistake was made.
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
