//! Keeps the kernel's side equal to the mesh: which destinations are captured, how each pod takes plaintext,
//! and which ports it keeps out of capture.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ambit_core::inbound::{PlaintextMode, plaintext_modes};
use ambit_core::mesh::{Mesh, Touched};
use ambit_loader::{Dataplane, Inbound, InboundMode};
use parking_lot::Mutex;

use crate::error::Error;
use crate::pods::Pod;

/// The kernel's side, written by one thread at a time. What could not be written is tried again.
pub(crate) struct Kernel {
    dataplane: Dataplane,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    destinations: BTreeSet<IpAddr>,
    /// All pods' modes.
    modes: bool,
}

impl Kernel {
    pub(crate) fn new(dataplane: Dataplane) -> Self {
        Self { dataplane, pending: Mutex::default() }
    }

    pub(crate) fn dataplane(&self) -> &Dataplane {
        &self.dataplane
    }

    /// Takes over from whatever an earlier daemon left: every address in the kernel and every address that
    /// should be there is looked at.
    pub(crate) fn reconcile(&self, mesh: &Mesh, pods: &[std::sync::Arc<Pod>]) {
        let mut pending = self.pending.lock();
        match self.dataplane.destinations() {
            Ok(present) => pending.destinations.extend(present),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "reading captured destinations");
            }
        }
        let workloads = mesh.workloads().flat_map(|workload| &workload.addresses);
        let services = mesh.services().flat_map(|service| &service.addresses);
        pending.destinations.extend(workloads.chain(services));
        pending.modes = true;
        self.write(&mut pending, mesh, pods);
    }

    /// Follows a change of the mesh.
    pub(crate) fn follow(&self, mesh: &Mesh, touched: &Touched, pods: &[std::sync::Arc<Pod>]) {
        let mut pending = self.pending.lock();
        pending.destinations.extend(&touched.addresses);
        pending.modes |=
            !touched.policies.is_empty() || pods.iter().any(|pod| touched.workloads.contains(&pod.uid));
        self.write(&mut pending, mesh, pods);
    }

    /// Tries again what could not be written.
    pub(crate) fn retry(&self, mesh: &Mesh, pods: &[std::sync::Arc<Pod>]) {
        let mut pending = self.pending.lock();
        self.write(&mut pending, mesh, pods);
    }

    /// Writes one pod's modes, and what it excludes.
    pub(crate) fn set_mode(&self, mesh: &Mesh, pod: &Pod) -> Result<(), Error> {
        let mode = kernel_modes(&plaintext_modes(mesh, &pod.uid));
        let excluded = mesh.workload(&pod.uid).map(|workload| &workload.excluded_ports.outbound);
        self.dataplane
            .set_ports(pod.cookie, &mode, excluded.unwrap_or(&BTreeSet::new()))
            .map_err(|source| Error::Dataplane { object: pod.uid.to_string(), source })
    }

    fn write(&self, pending: &mut Pending, mesh: &Mesh, pods: &[std::sync::Arc<Pod>]) {
        pending.destinations.retain(|address| {
            let result = if mesh.captures(*address) {
                self.dataplane.add_destination(*address)
            } else {
                self.dataplane.remove_destination(*address)
            };
            match result {
                Ok(()) => false,
                Err(error) => {
                    tracing::error!(%address, error = &error as &dyn std::error::Error, "writing a captured destination");
                    true
                }
            }
        });
        if pending.modes {
            pending.modes = false;
            for pod in pods {
                if let Err(error) = self.set_mode(mesh, pod) {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "writing a pod's plaintext modes"
                    );
                    pending.modes = true;
                }
            }
        }
    }
}

fn kernel_modes(modes: &ambit_core::inbound::PlaintextModes) -> Inbound {
    let mode = |mode| match mode {
        PlaintextMode::Open => InboundMode::Open,
        PlaintextMode::Check => InboundMode::Check,
        PlaintextMode::Strict => InboundMode::Strict,
    };
    Inbound {
        default: mode(modes.default),
        ports: modes.ports.iter().map(|(port, m)| (*port, mode(*m))).collect(),
        probe_ports: modes.probe_ports.clone(),
    }
}
