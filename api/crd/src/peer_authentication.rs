//! PeerAuthentication, with Istio's checks: [`convert`].

use std::collections::BTreeMap;

use ambit_core::derive::{Metadata, MtlsMode, PeerAuthentication};

use crate::Mistake;
use crate::field::Report;
use crate::metadata;
use crate::security as written;

/// The annotation that demands TLS on the same node too.
const SAME_NODE_TLS: &str = "ambit.dev/same-node-tls";

pub(crate) fn convert(policy: written::PeerAuthentication) -> Result<PeerAuthentication, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_namespace(&mut report, policy.metadata);
    let spec = policy.spec.unwrap_or_default();
    let selector = metadata::selector(&mut report, spec.selector);
    let mode = spec
        .mtls
        .map_or(MtlsMode::Unset, |mtls| mode_of(&mut report, "spec.mtls.mode", mtls.mode.as_deref()));
    let mut port_modes = BTreeMap::new();
    if let Some(ports) = spec.port_level_mtls {
        if selector.is_empty() {
            report.add("spec.portLevelMtls", "needs a selector: a port means something on a workload only");
        }
        if ports.is_empty() {
            report.add("spec.portLevelMtls", "is empty: leave it out or name a port");
        }
        for (port, mtls) in ports {
            let field = format!("spec.portLevelMtls[{port}]");
            let mode = mode_of(&mut report, &format!("{field}.mode"), mtls.mode.as_deref());
            if let Some(port) = report.port_text(field, &port) {
                port_modes.insert(port, mode);
            }
        }
    }
    let same_node_tls = same_node_tls(&mut report, &metadata);
    report.finish(PeerAuthentication { metadata, selector, mode, port_modes, same_node_tls })
}

/// Whether TLS is demanded between workloads of one node, if the annotation is set.
fn same_node_tls(report: &mut Report, metadata: &Metadata) -> Option<bool> {
    match metadata.annotations.get(SAME_NODE_TLS)?.as_str() {
        "required" => Some(true),
        "optional" => Some(false),
        other => {
            let field = format_args!("metadata.annotations[{SAME_NODE_TLS}]");
            report.add(field, format_args!("{other:?} is neither required nor optional"));
            None
        }
    }
}

fn mode_of(report: &mut Report, field: &str, mode: Option<&str>) -> MtlsMode {
    match mode {
        None | Some("UNSET") => MtlsMode::Unset,
        Some("DISABLE") => MtlsMode::Disable,
        Some("PERMISSIVE") => MtlsMode::Permissive,
        Some("STRICT") => MtlsMode::Strict,
        Some(other) => {
            report.add(field, format_args!("{other:?} is none of UNSET, DISABLE, PERMISSIVE, STRICT"));
            MtlsMode::Unset
        }
    }
}
