//! The daemon's half of the direct path. The kernel carries the connections; here verdicts are written,
//! voided and watched.
//!
//! - [`Direct::remember`] caches the verdict under which a tunnel was opened; [`Direct::void`] invalidates
//!   the verdicts that a change of the mesh may have made stale; the lease, renewed periodically, keeps the
//!   others valid.
//! - [`services`] keeps the kernel's choice of endpoints equal to the daemon's.
//! - [`flows`] rechecks tracked flows: lists them, counts what they carry, closes what is no longer allowed.
//! - [`unlisted`] does the same for connections that neither the daemon carries nor the kernel tracks.
//! - [`records`] turns what the kernel recorded into the reports that other paths make.
//!
//! The order of a change is that of `ambit_proxy::sync` (`docs/decisions/073`): decisions first, then cached
//! verdicts, then capture maps, then open connections.

mod context;
mod counted;
mod flows;
mod names;
mod native;
mod observation;
mod records;
mod scope;
mod services;
mod share;
mod unlisted;
mod untracked;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use ambit_core::chain;
use ambit_core::direct::{Refusal, Sources, affected, verdict};
use ambit_core::mesh::{Mesh, Touched};
use ambit_core::model::WorkloadUid;
use ambit_core::outbound::Tunnel;
use ambit_loader::{Dataplane, KernelReason, Lease, Verdict, VerdictSweep, Waiter, WorkloadNumber};
use ambit_proxy::proxy::Proxy;
use ambit_proxy::sync::MeshChange;
use ambit_proxy::views::ConnectionView;
use parking_lot::Mutex;

use crate::config;
use crate::error::Error;
use crate::links::Links;
use crate::pods::{Pod, Pods};

use context::Context;
use names::Names;
pub(crate) use scope::Scope;
use services::Services;
pub(crate) use share::SHARE_USED;
pub(crate) use unlisted::CLOSED;

/// How often the kernel's records are read.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
/// How often verdicts that no longer hold are removed.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);
/// How often what the programs on shared links know of ended connections is removed, and how long after
/// their end: their last packets may still wait in a queue.
const LINK_SWEEP_INTERVAL: Duration = Duration::from_secs(5);
const LINK_LINGER: Duration = Duration::from_secs(2);
/// How often a recheck that failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long after a repair connections are looked for that passed capture: a `connect()` that was decided
/// before it may take a moment to become a connection.
const SUSPECT: Duration = Duration::from_secs(3);
/// How long one round of [`watch`] may take. Most take milliseconds.
const STALLED: Duration = Duration::from_secs(30);
/// How long the record of a connection that was closed by the daemon may take to arrive.
const CUT_MEMORY: Duration = Duration::from_secs(30);

/// The direct path of this node.
pub(crate) struct Direct {
    context: Arc<Context>,
    lease: Duration,
    sources: Mutex<Sources>,
    services: Services,
    /// What earlier daemons cached has been voided: there may be a lease.
    started: AtomicBool,
    /// Destinations whose verdicts could not be voided. While there are any, no verdict holds: there is no
    /// lease.
    unvoided: Mutex<BTreeSet<WorkloadNumber>>,
    rechecks: Sender<Scope>,
    /// Where [`watch`] waits.
    waiter: Waiter,
    /// When [`watch`] last finished a round.
    last_round: Mutex<Instant>,
    /// When something was last put right in the kernel.
    put_right: Mutex<Option<Instant>>,
}

/// What [`watch`] is asked to recheck.
pub(crate) struct Rechecks(Receiver<Scope>);

impl Direct {
    /// Starts from what earlier daemons enrolled. With the direct path switched off, what they cached is
    /// voided here.
    pub(crate) fn new(
        config: &config::Config,
        enabled: bool,
        dataplane: Arc<Dataplane>,
        pods: Arc<Pods>,
        proxy: Arc<Proxy>,
        links: Arc<Links>,
    ) -> Result<(Self, Rechecks), Error> {
        let failed = |source| Error::Dataplane { operation: "start the direct path", source };
        let names = Names::new(dataplane.workload_numbers().map_err(failed)?);
        if !enabled {
            dataplane.renew_lease(Lease::Verdicts, Duration::ZERO).map_err(failed)?;
        }
        let inherited = dataplane.services().map_err(failed)?;
        let context = Arc::new(Context {
            enabled,
            node: config.node.clone(),
            dataplane,
            pods,
            proxy,
            names,
            links,
            cut: Mutex::default(),
            counted: counted::Counted::default(),
            draining: Mutex::default(),
        });
        let (rechecks, requests) = channel();
        let waiter = context.dataplane.waiter().map_err(failed)?;
        let direct = Self {
            waiter,
            services: Services::new(context.clone(), inherited),
            context,
            lease: config.direct.lease(),
            sources: Mutex::default(),
            started: AtomicBool::new(false),
            unvoided: Mutex::default(),
            rechecks,
            last_round: Mutex::new(Instant::now()),
            put_right: Mutex::default(),
        };
        Ok((direct, Rechecks(requests)))
    }

    /// Starts the thread that reads records and rechecks open connections.
    pub(crate) fn start(self: &Arc<Self>, requests: Rechecks) -> Result<(), Error> {
        let watched = self.clone();
        std::thread::Builder::new()
            .name("direct".to_owned())
            .spawn(move || watch(&watched, &requests))
            .map_err(|source| Error::System { operation: "start the thread of the direct path", source })?;
        Ok(())
    }

    /// A pod is enrolled. Called before it is in the table of pods, so that no verdict is older than what is
    /// known here.
    pub(crate) fn enrolled(&self, number: WorkloadNumber, uid: &WorkloadUid) {
        self.context.names.enrolled(number, uid);
        let mut sources = self.sources.lock();
        if let Some(mesh) = self.context.proxy.mesh.mesh() {
            self.context.names.follow(&mesh, None);
            // Its identity in an earlier enrolment does not matter: the verdicts ended with that enrolment.
            sources.follow(&mesh, [uid]);
        }
    }

    /// A pod is enrolled and its listeners are up. `fresh`: it was not enrolled before.
    pub(crate) fn settled(&self, pod: &Pod, fresh: bool) {
        let mesh = self.context.proxy.mesh.mesh().unwrap_or_default();
        write_addresses(&self.context.dataplane, &mesh, pod);
        unlisted::enrolled(&self.context, pod, fresh);
        self.services.follow_pod(&pod.workload.uid);
        // What an earlier daemon permitted to it, and could not be rechecked without its namespace.
        self.recheck(Scope::Destinations(BTreeSet::from([pod.workload.uid.clone()])));
    }

    /// Other endpoints are ejected than before: the kernel is to choose as the daemon does.
    pub(crate) fn rebalance(&self) {
        self.services.follow_all();
    }

    /// A pod has left, and its verdicts with it.
    pub(crate) fn released(&self, uid: &WorkloadUid) {
        self.context.names.released(uid);
        self.sources.lock().forget(uid);
        self.services.follow_pod(uid);
    }

    /// Caches the verdict that `source` may connect without the daemon to where this tunnel went, if it may
    /// be cached. `asked` is the application's original destination.
    pub(crate) fn remember(&self, source: &Pod, tunnel: &Tunnel, asked: SocketAddr) {
        if !self.context.enabled {
            return;
        }
        let Some(destination) = self.context.pods.get(&tunnel.destination.uid) else { return };
        let (Some(from), Some(to)) = (source.number(), destination.number()) else { return };
        let dataplane = &self.context.dataplane;
        // First the generation, then the mesh: a change in between voids the verdict before it is written.
        let generation = match dataplane.generation(to) {
            Ok(Some(generation)) => generation,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(error = chain(&error), "failed to read a generation");
                return;
            }
        };
        let Some(mesh) = self.context.proxy.mesh.mesh() else { return };
        self.services.stick(&mesh, source, from, tunnel, asked);
        let (client, server) = (&source.workload.uid, &destination.workload.uid);
        let links = self.context.links.carry(client, server).then_some(()).ok_or(Refusal::Links);
        if let Err(refusal) = links.and_then(|()| verdict(&mesh, client, server, tunnel.authority)) {
            tracing::trace!(source = %client, destination = %server, %refusal, "verdict not cached");
            return;
        }
        let verdict = Verdict { source: from, destination: to, address: tunnel.authority, generation };
        let added = dataplane.add_verdict(&verdict);
        share::count_if_used(&added, "VERDICTS");
        if let Err(error) = added {
            tracing::warn!(error = chain(&error), "failed to cache a verdict");
        }
    }

    /// Voids the verdicts that a change may have made wrong; returns whose open connections are to be
    /// rechecked afterwards. The mesh has been published already.
    pub(crate) fn void(&self, change: &MeshChange<'_>) -> Scope {
        let MeshChange { before, after, touched } = *change;
        let mut sources = self.sources.lock();
        self.context.names.follow(after, touched);
        let enrolled = self.context.names.all_enrolled();
        let another = sources.follow(after, enrolled.iter().map(|(_, uid)| uid));
        let scope = match (before, touched) {
            (Some(before), Some(touched)) if !another => {
                Scope::Destinations(affected(before, after, touched, enrolled.iter().map(|(_, uid)| uid)))
            }
            _ => Scope::All,
        };
        let stale = enrolled.into_iter().filter(|(_, uid)| scope.contains(uid)).map(|(number, _)| number);
        self.bump(stale);
        drop(sources);
        self.started.store(true, Ordering::SeqCst);
        scope
    }

    fn bump(&self, destinations: impl IntoIterator<Item = WorkloadNumber>) {
        let dataplane = &self.context.dataplane;
        let mut unvoided = self.unvoided.lock();
        let had = unvoided.len();
        for number in destinations {
            if let Err(error) = dataplane.advance_generation(number) {
                tracing::error!(error = chain(&error), "failed to void verdicts");
                unvoided.insert(number);
            }
        }
        if unvoided.len() > had
            && let Err(error) = dataplane.renew_lease(Lease::Verdicts, Duration::ZERO)
        {
            tracing::error!(error = chain(&error), "failed to void all verdicts");
        }
    }

    /// Whether open connections are rechecked when policies change.
    pub(crate) fn follows(&self) -> bool {
        if !self.started.load(Ordering::SeqCst) {
            return false;
        }
        // Without rechecks the daemon would not know which connections it must close.
        let stalled = self.last_round.lock().elapsed() > STALLED;
        if stalled {
            tracing::error!("direct-path thread stalled; the leases are not renewed");
        }
        !stalled
    }

    /// Renews the lease, unless a verdict could not be voided or the direct-path thread is late.
    pub(crate) fn renew(&self) {
        if !self.context.enabled || !self.follows() {
            return;
        }
        let dataplane = &self.context.dataplane;
        let mut unvoided = self.unvoided.lock();
        unvoided.retain(|number| dataplane.advance_generation(*number).is_err());
        if unvoided.is_empty()
            && let Err(error) = dataplane.renew_lease(Lease::Verdicts, self.lease)
        {
            tracing::error!(error = chain(&error), "failed to renew the lease");
        }
    }

    /// Follows a change of what is not a verdict: names and choices of endpoints.
    pub(crate) fn follow(&self, change: &MeshChange<'_>) {
        let MeshChange { before, after, touched } = *change;
        for pod in self.context.pods.all() {
            if touched.is_none_or(|touched: &Touched| touched.workloads.contains(&pod.workload.uid)) {
                write_addresses(&self.context.dataplane, after, &pod);
            }
        }
        match (before, touched) {
            (Some(before), Some(touched)) => self.services.follow(before, after, touched),
            _ => self.services.follow_all(),
        }
    }

    /// Tries again what could not be written.
    pub(crate) fn retry(&self) {
        self.services.retry();
    }

    /// Has open connections rechecked by [`watch`], soon.
    pub(crate) fn recheck(&self, scope: Scope) {
        if !scope.is_empty() {
            // The thread ends with the process.
            let _ = self.rechecks.send(scope);
            self.waiter.wake();
        }
    }

    /// What should be in the kernel was put right: connections may have passed it meanwhile.
    pub(crate) fn put_right(&self) {
        *self.put_right.lock() = Some(Instant::now());
        self.recheck(Scope::All);
    }

    /// Whether something was put right so short ago that a connection which passed it may still be made.
    fn is_suspect(&self) -> bool {
        self.put_right.lock().is_some_and(|at| at.elapsed() < SUSPECT)
    }

    /// Reports what the kernel has recorded until now.
    pub(crate) fn report_records(&self) {
        self.recheck(records::drain(&self.context));
    }

    /// Counts in the metrics what the kernel has recorded and carried until now.
    pub(crate) fn count(&self) {
        self.recheck(flows::count(&self.context));
    }

    /// The open connections that the kernel carries, for `/connections`.
    pub(crate) fn connections(&self) -> Vec<ConnectionView> {
        flows::list(&self.context)
    }
}

/// Writes a pod's addresses to the kernel, where records get their names from, and which connections of the
/// node may be probes. Until the mesh says which addresses it has, they are those of its interfaces.
fn write_addresses(dataplane: &Dataplane, mesh: &Mesh, pod: &Pod) {
    let uid = &pod.workload.uid;
    let Some(number) = pod.number() else { return };
    let known = mesh.workload(uid).filter(|workload| workload.has_own_address());
    let addresses = if let Some(workload) = known {
        workload.addresses.iter().copied().collect()
    } else {
        let own = pod.interfaces().addresses().iter().copied();
        own.filter(|address| mesh.workload_by_address(*address).is_none()).collect()
    };
    if let Err(error) = dataplane.set_addresses(number, &addresses) {
        tracing::warn!(%uid, error = chain(&error), "failed to write a pod's addresses");
    }
}

/// A thread and not a task: it reads long maps and asks the kernel about many sockets.
fn watch(direct: &Direct, requests: &Rechecks) {
    let context = &direct.context;
    let mut swept = Instant::now();
    let mut links_swept = Instant::now();
    // A sweep that is under way.
    let mut sweep: Option<VerdictSweep> = None;
    let mut lost = lost_records(context);
    // Whose connections could not be listed or closed.
    let mut left = Scope::none();
    let mut tried = Instant::now();
    loop {
        if let Err(error) = direct.waiter.wait(DRAIN_INTERVAL) {
            tracing::error!(error = chain(&error), "failed to wait for the kernel's records");
            std::thread::sleep(DRAIN_INTERVAL);
        }
        // Several changes at once take one recheck.
        let mut scope = Scope::none();
        requests.0.try_iter().for_each(|more| scope.join(more));
        if tried.elapsed() >= RETRY_INTERVAL {
            scope.join(std::mem::replace(&mut left, Scope::none()));
            tried = Instant::now();
        }
        left.join(flows::recheck(context, scope.clone()));
        let suspect = direct.is_suspect();
        if suspect && tried.elapsed() < DRAIN_INTERVAL {
            scope = Scope::All;
        }
        left.join(unlisted::recheck(context, &scope, suspect));
        // What was established while its policy changed, or arrived by rules that no longer hold, is
        // rechecked at once. Where records were lost, it is not known whose they were.
        let mut recorded = records::drain(context);
        let now_lost = lost_records(context);
        if now_lost != lost {
            lost = now_lost;
            recorded = Scope::All;
        }
        left.join(flows::recheck(context, recorded));
        *direct.last_round.lock() = Instant::now();
        if links_swept.elapsed() >= LINK_SWEEP_INTERVAL {
            links_swept = Instant::now();
            if let Err(error) = context.dataplane.sweep_links(LINK_LINGER) {
                tracing::warn!(error = chain(&error), "failed to sweep shared links");
            }
        }
        if swept.elapsed() >= SWEEP_INTERVAL {
            swept = Instant::now();
            forget(context);
            sweep.get_or_insert_default();
        }
        sweep = sweep.and_then(|sweep| go_on(context, sweep));
    }
}

/// How many records the kernel had no room for.
fn lost_records(context: &Context) -> Option<u64> {
    let lost = context.dataplane.counter(KernelReason::RecordLost);
    lost.inspect_err(|error| {
        tracing::error!(error = chain(error), "failed to read how many records were lost");
    })
    .ok()
}

/// Removes some of the stale verdicts; none when that was the last step. In steps, so that records and
/// rechecks do not wait for a long map.
fn go_on(context: &Context, mut sweep: VerdictSweep) -> Option<VerdictSweep> {
    match context.dataplane.sweep_verdicts(&mut sweep) {
        Ok(finished) => (!finished).then_some(sweep),
        Err(error) => {
            tracing::warn!(error = chain(&error), "failed to remove stale verdicts");
            None
        }
    }
}

/// What is done before each sweep of verdicts: forgets what is long past.
fn forget(context: &Context) {
    if let Err(error) = context.dataplane.remove_older() {
        tracing::warn!(error = chain(&error), "failed to remove what an older version left");
    }
    context.cut.lock().retain(|_, (since, _)| since.elapsed() < CUT_MEMORY);
}
