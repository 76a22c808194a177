//! Keeps capture in the kernel equal to the mesh: which destinations are captured, how each pod takes
//! plaintext, and which ports it excludes.
//!
//! Entry points: [`Capture::reconcile`], then [`Capture::follow`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ambit_core::chain;
use ambit_core::inbound::{PlaintextMode, plaintext_modes};
use ambit_core::mesh::{Mesh, Touched};
use ambit_core::ownership::{self, Captured};
use ambit_loader::{self as loader, Dataplane, Inbound, InboundMode, Lease};
use parking_lot::Mutex;

use crate::error::Error;
use crate::pods::Pod;

/// What is written to the kernel, by one thread at a time. What could not be written is tried again.
pub(crate) struct Capture {
    dataplane: Arc<Dataplane>,
    pending: Mutex<Pending>,
    /// None: what the kernel lets pass could not be closed later, so it lets nothing pass by itself.
    open: Option<OpenMode>,
    /// The kernel captures everything, or has done so a moment ago.
    captures_all: AtomicBool,
}

/// How long plaintext passes to pods that no policy selects, counted from the daemon's last renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenMode {
    For(Duration),
    /// Also while no daemon follows policies.
    ForEver,
}

#[derive(Debug, Default)]
struct Pending {
    destinations: BTreeSet<IpAddr>,
    /// The kernel has no room for some of them: it captures connections to all destinations, also those
    /// outside the mesh, and the daemon decides. None: it is not known how an earlier daemon left that.
    captures_all: Option<bool>,
    /// All pods' modes.
    modes: bool,
    /// Everything has been written at least once: open modes of an earlier daemon have been reviewed.
    reconciled: bool,
}

impl Capture {
    pub(crate) fn new(dataplane: Arc<Dataplane>, open: Option<OpenMode>) -> Self {
        Self { dataplane, pending: Mutex::default(), open, captures_all: AtomicBool::new(false) }
    }

    /// Renews the lease on open mode, unless a mode could not be written.
    pub(crate) fn renew(&self) {
        let pending = self.pending.lock();
        let time = match self.open {
            Some(OpenMode::For(time)) if pending.reconciled && !pending.modes => time,
            Some(OpenMode::ForEver) if pending.reconciled && !pending.modes => Duration::MAX,
            // It runs out; what an earlier daemon was told to leave for ever, too.
            Some(OpenMode::For(time)) => return self.limit(time),
            Some(OpenMode::ForEver) => return,
            None => Duration::ZERO,
        };
        if let Err(error) = self.dataplane.renew_lease(Lease::OpenMode, time) {
            tracing::error!(error = chain(&error), "failed to renew the lease on open mode");
        }
    }

    fn limit(&self, time: Duration) {
        if let Err(error) = self.dataplane.limit_lease(Lease::OpenMode, time) {
            tracing::error!(error = chain(&error), "failed to limit the lease on open mode");
        }
    }

    /// Takes over what an earlier daemon left: every address in the kernel and every address that should be
    /// there is written again.
    pub(crate) fn reconcile(&self, mesh: &Mesh, pods: &[Arc<Pod>]) {
        let mut pending = self.pending.lock();
        pending.captures_all = None;
        match self.dataplane.destinations() {
            Ok(present) => pending.destinations.extend(present),
            Err(error) => tracing::error!(error = chain(&error), "failed to list captured destinations"),
        }
        let workloads = mesh.workloads().flat_map(|workload| &workload.addresses);
        let services = mesh.services().flat_map(|service| &service.addresses);
        pending.destinations.extend(workloads.chain(services));
        pending.modes = true;
        self.write(&mut pending, mesh, pods);
        pending.reconciled = true;
    }

    /// Follows a change of the mesh.
    pub(crate) fn follow(&self, mesh: &Mesh, touched: &Touched, pods: &[Arc<Pod>]) {
        let mut pending = self.pending.lock();
        pending.destinations.extend(&touched.addresses);
        pending.modes |= !touched.policies.is_empty()
            || pods.iter().any(|pod| touched.workloads.contains(&pod.workload.uid));
        self.write(&mut pending, mesh, pods);
    }

    /// Tries again what could not be written.
    pub(crate) fn retry(&self, mesh: &Mesh, pods: &[Arc<Pod>]) {
        let mut pending = self.pending.lock();
        self.write(&mut pending, mesh, pods);
    }

    /// Writes how one pod takes plaintext, the ports it excludes, and its namespace.
    pub(crate) fn set_mode(&self, mesh: &Mesh, pod: &Pod) -> Result<(), Error> {
        let uid = &pod.workload.uid;
        let failed = |operation| move |source| Error::Pod { operation, workload: uid.to_string(), source };
        let workload = mesh.workload(uid);
        if let Some(workload) = workload {
            let written = self.dataplane.set_namespace(pod.cookie, &workload.namespace);
            written.map_err(failed("write the namespace of"))?;
        }
        let mode = kernel_modes(&plaintext_modes(mesh, uid));
        let excluded = workload.map(|workload| &workload.excluded_ports.outbound);
        let written = self.dataplane.set_ports(pod.cookie, &mode, excluded.unwrap_or(&BTreeSet::new()));
        written.map_err(failed("write the plaintext modes of"))
    }

    /// Whether connections are captured that go to no destination of the mesh.
    pub(crate) fn captures_all(&self) -> bool {
        self.captures_all.load(Ordering::Relaxed)
    }

    /// How many destinations the kernel does not list.
    pub(crate) fn unlisted(&self) -> usize {
        self.pending.lock().destinations.len()
    }

    fn write(&self, pending: &mut Pending, mesh: &Mesh, pods: &[Arc<Pod>]) {
        self.write_destinations(pending, mesh);
        if pending.modes {
            pending.modes = false;
            for pod in pods {
                if let Err(error) = self.set_mode(mesh, pod) {
                    tracing::error!(error = chain(&error), "failed to write plaintext modes");
                    pending.modes = true;
                }
            }
        }
    }
}

fn kernel_capture(captured: &Captured) -> loader::Capture {
    let Captured::Parts(parts) = captured else { return loader::Capture::Whole };
    let part = |part: &ownership::Part| loader::Part {
        namespace: part.namespace.as_deref().map(str::to_owned),
        port: part.port,
    };
    loader::Capture::Parts(parts.iter().map(part).collect())
}

/// What happened to a destination.
enum Written {
    Done,
    /// There is no room for it.
    Full,
    Failed,
}

impl Capture {
    /// First what makes room, then what takes it. While anything is missing in the kernel, it captures
    /// everything: what is not listed must not pass in plaintext.
    fn write_destinations(&self, pending: &mut Pending, mesh: &Mesh) {
        let write = |address: &IpAddr, capture: &loader::Capture| match self
            .dataplane
            .capture(*address, capture)
        {
            Ok(true) => Written::Done,
            Ok(false) => Written::Full,
            Err(error) => {
                tracing::error!(%address, error = chain(&error), "failed to write a captured destination");
                Written::Failed
            }
        };
        let wanted = |address: &IpAddr| kernel_capture(&ownership::captured(mesh, *address));
        pending.destinations.retain(|address| {
            let capture = wanted(address);
            !(capture.is_nothing() && matches!(write(address, &capture), Written::Done))
        });
        let mut full = false;
        pending.destinations.retain(|address| {
            let written = if full { Written::Full } else { write(address, &wanted(address)) };
            full |= matches!(written, Written::Full);
            !matches!(written, Written::Done)
        });
        let captures_all = !pending.destinations.is_empty();
        if pending.captures_all == Some(captures_all) {
            return;
        }
        // What is captured in between is carried.
        self.captures_all.fetch_or(captures_all, Ordering::Relaxed);
        if let Err(error) = self.dataplane.capture_all(captures_all) {
            tracing::error!(error = chain(&error), "failed to switch capture of all destinations");
            return;
        }
        self.captures_all.store(captures_all, Ordering::Relaxed);
        let unlisted = pending.destinations.len();
        if captures_all {
            tracing::error!(unlisted, full, "kernel lacks destinations, all connections are captured");
        } else if pending.captures_all.is_some() {
            tracing::info!("kernel has all destinations again");
        }
        pending.captures_all = Some(captures_all);
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
