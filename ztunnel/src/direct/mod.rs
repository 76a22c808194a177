//! The daemon's half of the direct path. The kernel carries the connections; here is decided, told and
//! watched.
//!
//! - [`Direct::remember`] tells the kernel a yes that came about on the tunnel path; [`Direct::void`] takes
//!   back what a change of the mesh may have made wrong, and [`keep_lease`] says again and again that the
//!   rest still holds.
//! - [`services`] keeps the kernel's choice of endpoints equal to the daemon's.
//! - [`flows`] looks at what is open: lists it, counts what it carries, and cuts what is no longer allowed.
//! - [`records`] turns what the kernel saw into the reports that other paths make.
//!
//! The order in which a change is taken in (decision 074): publish the mesh, make yeses void, then look at
//! what is open.

mod counted;
mod facts;
mod flows;
mod names;
mod records;
mod services;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ambit_core::direct::{Sources, affected, verdict};
use ambit_core::mesh::{Mesh, Touched};
use ambit_core::model::WorkloadUid;
use ambit_core::outbound::Tunnel;
use ambit_daemon_kit::telemetry::connection::Ending;
use ambit_loader::{Dataplane, KernelReason, Verdict, WorkloadNumber};
use parking_lot::Mutex;

use crate::config;
use crate::daemon::Node;
use crate::error::Error;
use crate::pods::Pod;
use crate::report::chain;

use counted::Counted;
use names::Names;
use services::Services;

/// How often the kernel's records are read.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
/// How often yeses that hold no longer are cleared away.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);
/// How often what could not be looked at is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long [`watch`] may take over one round. Most take milliseconds.
const STALLED: Duration = Duration::from_secs(30);
/// How often a lease is renewed before it runs out.
const RENEWALS: u32 = 4;
/// How long a connection that was cut may take to be recorded as closed.
const CUT_MEMORY: Duration = Duration::from_secs(30);

/// What is known and under way.
pub(crate) struct Direct {
    settings: config::Direct,
    names: Names,
    sources: Mutex<Sources>,
    services: Services,
    /// What earlier daemons said has been taken back: there may be a lease.
    begun: AtomicBool,
    /// Destinations whose yeses could not be made void. While there are any, no yes holds: there is no
    /// lease.
    unsure: Mutex<BTreeSet<WorkloadNumber>>,
    /// Connections that were cut, by both ends, and why: their records say only that they were reset.
    cut: Mutex<HashMap<(SocketAddr, SocketAddr), (Instant, Ending)>>,
    /// What the metrics know of what is open.
    counted: Counted,
    /// One thread at a time takes records, so that they are reported in order.
    draining: Mutex<()>,
    recheck: Sender<Whom>,
    /// When [`watch`] last finished a round.
    looked: Mutex<Instant>,
}

/// Whose open connections are to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    Everyone,
    /// Those to these destinations.
    These(BTreeSet<WorkloadUid>),
}

impl Whom {
    fn nobody() -> Self {
        Self::These(BTreeSet::new())
    }

    fn is_nobody(&self) -> bool {
        matches!(self, Self::These(these) if these.is_empty())
    }

    fn contains(&self, uid: &WorkloadUid) -> bool {
        match self {
            Self::Everyone => true,
            Self::These(these) => these.contains(uid),
        }
    }

    fn join(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::These(these), Self::These(more)) => these.extend(more),
            (_, Self::Everyone) => *self = Self::Everyone,
            (Self::Everyone, _) => {}
        }
    }
}

/// The end of [`Direct`] that [`watch`] listens at.
pub(crate) struct Asked(Receiver<Whom>);

impl Direct {
    /// Knows what earlier daemons enrolled. With the direct path switched off, what they said ends here.
    pub(crate) fn new(settings: &config::Direct, dataplane: &Dataplane) -> Result<(Self, Asked), Error> {
        let failed = |source| Error::Dataplane { object: "the direct path".to_owned(), source };
        let names = Names::new(dataplane.numbers().map_err(failed)?);
        if !settings.enabled {
            dataplane.renew_lease(Duration::ZERO).map_err(failed)?;
        }
        let services = Services::new(dataplane.services().map_err(failed)?);
        let (recheck, asked) = channel();
        let direct = Self {
            settings: settings.clone(),
            names,
            sources: Mutex::default(),
            services,
            begun: AtomicBool::new(false),
            unsure: Mutex::default(),
            cut: Mutex::default(),
            counted: Counted::default(),
            draining: Mutex::default(),
            recheck,
            looked: Mutex::new(Instant::now()),
        };
        Ok((direct, Asked(asked)))
    }

    /// A pod is enrolled. Before it is in the table of pods, so that no yes is older than what is known here.
    pub(crate) fn enrolled(&self, node: &Node, number: WorkloadNumber, uid: &WorkloadUid) {
        self.names.enrolled(number, uid);
        let mut sources = self.sources.lock();
        if let Some(mesh) = node.state.mesh() {
            self.names.follow(&mesh, None);
            // Who it was in an earlier enrolment is of no concern: its yeses went with that.
            sources.follow(&mesh, [uid]);
        }
    }

    /// A pod is enrolled and its listeners are up.
    pub(crate) fn settled(&self, node: &Node, pod: &Pod) {
        if let Some(mesh) = node.state.mesh() {
            own_addresses(node, &mesh, pod);
        }
        self.services.follow_pod(node, &pod.uid);
        // What an earlier daemon let pass to it, and could not be looked at without its namespace.
        self.look_at(Whom::These(BTreeSet::from([pod.uid.clone()])));
    }

    /// Others are ejected than before: the kernel is to choose as the daemon does.
    pub(crate) fn rebalance(&self, node: &Node) {
        self.services.follow_all(node);
    }

    /// A pod has left, and its yeses with it.
    pub(crate) fn released(&self, node: &Node, uid: &WorkloadUid) {
        self.names.released(uid);
        self.sources.lock().forget(uid);
        self.services.follow_pod(node, uid);
    }

    /// Tells the kernel that `source` may go on without the daemon to where this tunnel went, if that may be
    /// said. `asked` is what the application asked for.
    pub(crate) fn remember(&self, node: &Node, source: &Pod, tunnel: &Tunnel, asked: SocketAddr) {
        if !self.settings.enabled {
            return;
        }
        let Some(destination) = node.pods.get(&tunnel.destination.uid) else { return };
        let (Some(from), Some(to)) = (source.number(), destination.number()) else { return };
        let dataplane = node.kernel.dataplane();
        // First the generation, then the mesh: a change in between makes the yes void before it is written.
        let generation = match dataplane.generation(to) {
            Ok(Some(generation)) => generation,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(error = chain(&error), "reading a generation");
                return;
            }
        };
        let Some(mesh) = node.state.mesh() else { return };
        self.services.stick(node, &mesh, source, from, tunnel, asked);
        if let Err(refusal) = verdict(&mesh, &source.uid, &destination.uid, tunnel.authority) {
            tracing::trace!(source = %source.uid, destination = %destination.uid, %refusal, "not remembered");
            return;
        }
        let verdict = Verdict { source: from, destination: to, address: tunnel.authority, generation };
        if let Err(error) = dataplane.remember(&verdict) {
            tracing::warn!(error = chain(&error), "remembering a decision");
        }
    }

    /// Takes back what a change may have made wrong; whose open connections are to be looked at afterwards.
    /// Without `touched` everything is new. The mesh has been published already.
    pub(crate) fn void(
        &self,
        node: &Node,
        before: Option<&Mesh>,
        after: &Mesh,
        touched: Option<&Touched>,
    ) -> Whom {
        let mut sources = self.sources.lock();
        self.names.follow(after, touched);
        let enrolled = self.names.enrolled_ones();
        let another = sources.follow(after, enrolled.iter().map(|(_, uid)| uid));
        let whom = match (before, touched) {
            (Some(before), Some(touched)) if !another => {
                Whom::These(affected(before, after, touched, enrolled.iter().map(|(_, uid)| uid)))
            }
            _ => Whom::Everyone,
        };
        let stale = enrolled.into_iter().filter(|(_, uid)| whom.contains(uid)).map(|(number, _)| number);
        self.bump(node.kernel.dataplane(), stale);
        drop(sources);
        self.begun.store(true, Ordering::SeqCst);
        whom
    }

    fn bump(&self, dataplane: &Dataplane, destinations: impl IntoIterator<Item = WorkloadNumber>) {
        let mut unsure = self.unsure.lock();
        let had = unsure.len();
        for number in destinations {
            if let Err(error) = dataplane.bump(number) {
                tracing::error!(error = chain(&error), "taking back decisions");
                unsure.insert(number);
            }
        }
        if unsure.len() > had
            && let Err(error) = dataplane.renew_lease(Duration::ZERO)
        {
            tracing::error!(error = chain(&error), "taking back all decisions");
        }
    }

    /// Says that what was remembered holds, unless something is amiss.
    pub(crate) fn renew(&self, node: &Node) {
        if !self.settings.enabled || !self.begun.load(Ordering::SeqCst) {
            return;
        }
        // Nothing may go on without the daemon of which the daemon would not know when to end it.
        if self.looked.lock().elapsed() > STALLED {
            tracing::error!("nobody looks at the kernel's connections: decisions are not renewed");
            return;
        }
        let dataplane = node.kernel.dataplane();
        let mut unsure = self.unsure.lock();
        unsure.retain(|number| dataplane.bump(*number).is_err());
        if unsure.is_empty()
            && let Err(error) = dataplane.renew_lease(self.settings.lease())
        {
            tracing::error!(error = chain(&error), "renewing the lease of decisions");
        }
    }

    /// Follows a change of what is not a decision: names and choices. `before`: none at first.
    pub(crate) fn follow(&self, node: &Node, before: Option<&Mesh>, after: &Mesh, touched: Option<&Touched>) {
        for pod in node.pods.all() {
            if touched.is_none_or(|touched| touched.workloads.contains(&pod.uid)) {
                own_addresses(node, after, &pod);
            }
        }
        match (before, touched) {
            (Some(before), Some(touched)) => self.services.follow(node, before, after, touched),
            _ => self.services.follow_all(node),
        }
    }

    /// Tries again what could not be written.
    pub(crate) fn retry(&self, node: &Node) {
        self.services.retry(node);
    }

    /// Has open connections looked at, soon and elsewhere.
    pub(crate) fn look_at(&self, whom: Whom) {
        if !whom.is_nobody() {
            // The thread ends with the process.
            let _ = self.recheck.send(whom);
        }
    }
}

/// Tells the kernel which addresses are a pod's, for names.
fn own_addresses(node: &Node, mesh: &Mesh, pod: &Pod) {
    let (Some(number), Some(workload)) = (pod.number(), mesh.workload(&pod.uid)) else { return };
    let addresses = workload.addresses.iter().filter(|_| workload.has_own_address()).copied().collect();
    if let Err(error) = node.kernel.dataplane().set_addresses(number, &addresses) {
        tracing::warn!(uid = %pod.uid, error = chain(&error), "writing a pod's addresses");
    }
}

/// Starts the thread that reads records and looks at open connections, and the heartbeat.
pub(crate) fn start(node: &Arc<Node>, asked: Asked) -> Result<(), Error> {
    let watched = node.clone();
    std::thread::Builder::new().name("direct".to_owned()).spawn(move || watch(&watched, &asked)).map_err(
        |source| Error::System { operation: "starting the thread for direct connections", source },
    )?;
    if node.direct.settings.enabled {
        tokio::spawn(keep_lease(node.clone()));
    }
    Ok(())
}

/// A thread and not a task: it reads long maps and asks the kernel about many sockets.
fn watch(node: &Node, asked: &Asked) {
    let mut swept = Instant::now();
    let mut lost = lost_records(node);
    // Whose connections could not be looked at, or ended.
    let mut left = Whom::nobody();
    let mut tried = Instant::now();
    loop {
        let mut whom = match asked.0.recv_timeout(DRAIN_INTERVAL) {
            Ok(whom) => whom,
            Err(RecvTimeoutError::Timeout) => Whom::nobody(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // Several changes at once take one look.
        asked.0.try_iter().for_each(|more| whom.join(more));
        if tried.elapsed() >= RETRY_INTERVAL {
            whom.join(std::mem::replace(&mut left, Whom::nobody()));
            tried = Instant::now();
        }
        left.join(flows::recheck(node, whom));
        // What was established while its policy changed, or arrived by rules that no longer hold, is looked
        // at at once. Where records were lost, nobody knows whose.
        let mut seen = records::drain(node);
        let now_lost = lost_records(node);
        if now_lost != lost {
            lost = now_lost;
            seen = Whom::Everyone;
        }
        left.join(flows::recheck(node, seen));
        *node.direct.looked.lock() = Instant::now();
        if swept.elapsed() >= SWEEP_INTERVAL {
            swept = Instant::now();
            sweep(node);
        }
    }
}

/// How many records the kernel had no room for.
fn lost_records(node: &Node) -> Option<u64> {
    let lost = node.kernel.dataplane().counter(KernelReason::RecordLost);
    lost.inspect_err(|error| tracing::error!(error = chain(error), "reading how many records were lost")).ok()
}

fn sweep(node: &Node) {
    if let Err(error) = node.kernel.dataplane().forget_stale_verdicts() {
        tracing::warn!(error = chain(&error), "clearing away decisions that no longer hold");
    }
    node.direct.cut.lock().retain(|_, (since, _)| since.elapsed() < CUT_MEMORY);
}

async fn keep_lease(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(node.direct.settings.lease() / RENEWALS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        node.direct.renew(&node);
    }
}

impl Node {
    /// Reports what the kernel has seen until now.
    pub(crate) fn report_records(&self) {
        self.direct.look_at(records::drain(self));
    }

    /// Tells the metrics what the kernel has seen and carried until now.
    pub(crate) fn count_kernel_connections(&self) {
        self.direct.look_at(flows::count(self));
    }

    /// The open connections that the kernel carries, for `/connections`.
    pub(crate) fn kernel_connections(&self) -> Vec<crate::connections::View> {
        flows::list(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_to_look_add_up() {
        let these =
            |names: &[&str]| Whom::These(names.iter().map(|name| crate::testing::uid(name)).collect());
        let rows = [
            ("both", these(&["a"]), these(&["b"]), these(&["a", "b"])),
            ("nobody else", these(&["a"]), Whom::nobody(), these(&["a"])),
            ("everyone", these(&["a"]), Whom::Everyone, Whom::Everyone),
            ("everyone already", Whom::Everyone, these(&["a"]), Whom::Everyone),
        ];
        for (name, mut whom, more, expected) in rows {
            whom.join(more);
            assert_eq!(whom, expected, "{name}");
        }
        assert!(Whom::nobody().is_nobody() && !Whom::Everyone.is_nobody());
    }
}
