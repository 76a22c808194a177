//! Drives [`State`]: watches the node's pods and the namespaces, executes the actions, and reports their
//! outcomes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use ambit_daemon_kit::admin::Condition;
use ambit_kube::error::{chain, is_gone};
use ambit_kube::retry::{Backoff, RequestError};
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event as Watched};
use kube::{Api, ResourceExt as _};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::cluster::{self, Cluster};
use super::enroller::{self, Job, Report};
use super::pod::{PodKey, Seen};
use super::state::{Counts, Event, State};
use super::step::{Action, Outcome};
use super::telemetry;

/// Concurrent requests to the API server.
const CONCURRENCY: usize = 8;
/// How long a watch lasts: one whose connection died silently is noticed soon after.
pub(crate) const WATCH_SECONDS: u32 = 120;
/// Between two attempts to read a pod that a list does not have.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// Between two searches for pods that the plugin enrolled and that should not be in the mesh.
const SWEEP: Duration = Duration::from_mins(1);

/// The conditions of the agent's readiness.
#[derive(Debug)]
pub(crate) struct Conditions {
    pub(crate) api: Condition,
    pub(crate) ztunnel: Condition,
    pub(crate) pods: Condition,
}

/// The agent's main loop.
pub(crate) struct Reconciler {
    cluster: Cluster,
    state: State,
    jobs: Sender<Job>,
    reports: UnboundedReceiver<Report>,
    /// For steps at the API server.
    reporter: UnboundedSender<Report>,
    permits: Arc<Semaphore>,
    conditions: Conditions,
    counts: Arc<Mutex<Counts>>,
    /// ztunnel's file of the enrolled pods and their sources.
    owners: PathBuf,
    listing: Listing,
}

/// The pods and namespaces of the lists in progress, and those of the last complete ones.
#[derive(Debug, Default)]
struct Listing {
    pods: Option<BTreeSet<PodKey>>,
    namespaces: Option<BTreeSet<String>>,
    known_pods: BTreeSet<PodKey>,
    known_namespaces: BTreeSet<String>,
    /// Pods that a list does not have, until it is known whether they are gone: lists come from the API
    /// server's cache, which may lag behind what this agent or the plugin has seen.
    missing: BTreeSet<PodKey>,
    pods_done: bool,
    namespaces_done: bool,
}

impl Reconciler {
    pub(crate) fn new(
        cluster: Cluster,
        settings: enroller::Settings,
        conditions: Conditions,
        counts: Arc<Mutex<Counts>>,
    ) -> std::io::Result<Self> {
        let owners = settings.socket.with_file_name("enrolled.json");
        let (reporter, reports) = unbounded_channel();
        let jobs = enroller::start(settings, reporter.clone())?;
        let state = cluster.state();
        let permits = Arc::new(Semaphore::new(CONCURRENCY));
        let listing = Listing::default();
        Ok(Self { cluster, state, jobs, reports, reporter, permits, conditions, counts, owners, listing })
    }

    /// Runs for as long as it is polled.
    pub(crate) async fn run(mut self) {
        let client = self.cluster.client.clone();
        // From the cache of the API server: a list of the newest state costs a read of all pods of the
        // cluster.
        let from_cache = watcher::Config::default().any_semantic().timeout(WATCH_SECONDS);
        let of_node = from_cache.clone().fields(&self.cluster.selector());
        let pods = watcher::watcher(Api::<Pod>::all(client.clone()), of_node).default_backoff();
        let pods = pods.map(|event| event.map(MapSeen::map_seen));
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client);
        let namespaces = watcher::watcher(namespaces, from_cache).default_backoff();
        let (mut pods, mut namespaces) = (std::pin::pin!(pods), std::pin::pin!(namespaces));
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            self.act();
            let wake = self.state.next(Instant::now());
            tokio::select! {
                event = next(&mut pods) => self.pod_event(event),
                event = next(&mut namespaces) => self.namespace_event(event),
                Some(report) = self.reports.recv() => self.reported(report),
                () = until(wake) => {}
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    fn act(&mut self) {
        for action in self.state.actions(Instant::now()) {
            match action {
                Action::Enrol { key, uid } => self.job(Job::Enrol { key, uid }),
                Action::Keep { key } => self.job(Job::Keep { key }),
                Action::Release { key } => self.job(Job::Release { key }),
                Action::Snapshot => self.job(Job::Snapshot),
                Action::Annotate { key, uid } => self.redirect(key, uid, true),
                Action::Unannotate { key, uid } => self.redirect(key, uid, false),
                Action::Mark { key, uid, reason } => self.mark(key, uid, reason),
            }
        }
        *self.counts.lock() = self.state.counts();
    }

    fn job(&self, job: Job) {
        // The thread lives as long as this loop.
        _ = self.jobs.send(job);
    }

    fn redirect(&self, key: PodKey, uid: String, on: bool) {
        let cluster = self.cluster.clone();
        self.spawn(key.clone(), async move {
            // The watch may lag behind what the plugin has read: ask before a pod is released.
            if !on && cluster.desires(&key).await? {
                return Ok(Outcome::Failed);
            }
            cluster.annotate_captured(&key, &uid, on).await?;
            tracing::info!(pod = %key, captured = on, "pod annotated");
            Ok(Outcome::Redirected { uid, on })
        });
    }

    fn mark(&self, key: PodKey, uid: String, reason: Option<String>) {
        let cluster = self.cluster.clone();
        self.spawn(key.clone(), async move {
            cluster.annotate_not_captured(&key, &uid, reason.as_deref()).await?;
            tracing::info!(pod = %key, reason, "pod annotated as not captured");
            Ok(Outcome::Marked { uid, reason })
        });
    }

    /// A step at the API server.
    fn spawn(&self, key: PodKey, step: impl Future<Output = Result<Outcome, RequestError>> + Send + 'static) {
        let (reporter, permits) = (self.reporter.clone(), self.permits.clone());
        tokio::spawn(async move {
            let _permit = permits.acquire().await;
            let outcome = step.await.unwrap_or_else(|error| {
                if !matches!(&error, RequestError::Api(error) if is_gone(error)) {
                    telemetry::API_ERRORS.count();
                    tracing::warn!(pod = %key, error = chain(&error), "failed to write an annotation");
                }
                Outcome::Failed
            });
            // The receiver is gone when the agent stops.
            _ = reporter.send(Report::Pod(key, outcome));
        });
    }

    fn reported(&mut self, report: Report) {
        let event = match report {
            Report::Pod(key, outcome) => {
                telemetry::STEPS.count([telemetry::outcome(&outcome)]);
                Event::Done(key, outcome)
            }
            Report::NotOurs(key) => return self.release_plugins(key),
            Report::Looked(key, found) => return self.looked(key, found),
            Report::Snapshot(true) => {
                tracing::info!("snapshot accepted by ztunnel");
                self.conditions.pods.met();
                Event::SnapshotTaken
            }
            Report::Snapshot(false) => Event::SnapshotFailed,
            Report::Ztunnel(Ok(())) => return self.conditions.ztunnel.met(),
            Report::Ztunnel(Err(error)) => return self.conditions.ztunnel.unmet(error),
        };
        self.state.handle(event, Instant::now());
    }

    /// Releases a pod that the plugin enrolled, unless the API server says now that it should be in the mesh.
    fn release_plugins(&self, key: PodKey) {
        let (cluster, jobs, reporter) = (self.cluster.clone(), self.jobs.clone(), self.reporter.clone());
        tokio::spawn(async move {
            match cluster.desires(&key).await {
                Ok(false) => _ = jobs.send(Job::ReleasePlugins { key }),
                Ok(true) => _ = reporter.send(Report::Pod(key, Outcome::Released)),
                Err(_) => _ = reporter.send(Report::Pod(key, Outcome::Failed)),
            }
        });
    }

    /// Releases pods that only the plugin and ztunnel know: their sandboxes were never completed.
    fn sweep(&self) {
        if !self.state.snapshot_taken() {
            return;
        }
        for (uid, _) in self.enrolled().iter().filter(|(_, source)| *source == "cni") {
            if let Some(key) = pod_of(uid).filter(|key| !self.state.desires(key)) {
                tracing::debug!(pod = %key, "pod enrolled by the plugin should not be in the mesh");
                self.release_plugins(key);
            }
        }
    }

    /// The pods that ztunnel has, by uid, and their sources.
    fn enrolled(&self) -> BTreeMap<String, String> {
        let text = std::fs::read(&self.owners).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Asks whether a pod is there that a list does not have, until there is an answer.
    fn look(&self, key: PodKey) {
        let (cluster, reporter, permits) =
            (self.cluster.clone(), self.reporter.clone(), self.permits.clone());
        tokio::spawn(async move {
            let mut backoff = RETRY;
            let found = loop {
                let permit = permits.acquire().await;
                match cluster.pod(&key).await {
                    Ok(found) => break found,
                    Err(error) => {
                        telemetry::API_ERRORS.count();
                        tracing::warn!(pod = %key, error = chain(&error), "pod not read");
                    }
                }
                drop(permit);
                tokio::time::sleep(backoff.pause()).await;
            };
            // The receiver is gone when the agent stops.
            _ = reporter.send(Report::Looked(key, found.as_ref().map(cluster::seen)));
        });
    }

    /// Takes in what the API server has instead of a list's gap, unless the watch has told since.
    fn looked(&mut self, key: PodKey, found: Option<Seen>) {
        if self.listing.missing.remove(&key) {
            let event = match found {
                Some(seen) => {
                    self.listing.known_pods.insert(key.clone());
                    Event::Pod(key, seen)
                }
                None => Event::PodGone(key),
            };
            self.state.handle(event, Instant::now());
        }
        self.listed();
    }

    fn pod_event(&mut self, event: watcher::Result<Watched<(PodKey, Seen)>>) {
        let Some(event) = received("pods", event) else { return };
        let now = Instant::now();
        match event {
            Watched::Init => self.listing.pods = Some(BTreeSet::new()),
            Watched::Apply((key, seen)) | Watched::InitApply((key, seen)) => {
                if let Some(named) = &mut self.listing.pods {
                    named.insert(key.clone());
                }
                self.listing.missing.remove(&key);
                self.listing.known_pods.insert(key.clone());
                self.state.handle(Event::Pod(key, seen), now);
                self.listed();
            }
            Watched::Delete((key, _)) => {
                self.listing.missing.remove(&key);
                self.listing.known_pods.remove(&key);
                self.state.handle(Event::PodGone(key), now);
                self.listed();
            }
            Watched::InitDone => {
                let named = self.listing.pods.take().unwrap_or_default();
                let mut expected = std::mem::take(&mut self.listing.known_pods);
                expected.extend(self.enrolled().keys().filter_map(|uid| pod_of(uid)));
                for key in expected.difference(&named) {
                    if self.listing.missing.insert(key.clone()) {
                        self.look(key.clone());
                    }
                }
                self.listing.known_pods = named;
                self.listing.pods_done = true;
                self.listed();
            }
        }
    }

    fn namespace_event(&mut self, event: watcher::Result<Watched<PartialObjectMeta<Namespace>>>) {
        let Some(event) = received("namespaces", event) else { return };
        let now = Instant::now();
        match event {
            Watched::Init => self.listing.namespaces = Some(BTreeSet::new()),
            Watched::Apply(namespace) | Watched::InitApply(namespace) => {
                let name = namespace.name_any();
                if let Some(named) = &mut self.listing.namespaces {
                    named.insert(name.clone());
                }
                self.listing.known_namespaces.insert(name.clone());
                let labels = cluster::relevant(namespace.labels());
                self.state.handle(Event::Namespace(name, labels), now);
            }
            Watched::Delete(namespace) => {
                let name = namespace.name_any();
                self.listing.known_namespaces.remove(&name);
                self.state.handle(Event::NamespaceGone(name), now);
            }
            Watched::InitDone => {
                let named = self.listing.namespaces.take().unwrap_or_default();
                for name in self.listing.known_namespaces.difference(&named).cloned().collect::<Vec<_>>() {
                    self.state.handle(Event::NamespaceGone(name), now);
                }
                self.listing.known_namespaces = named;
                self.listing.namespaces_done = true;
                self.listed();
            }
        }
    }

    fn listed(&mut self) {
        let complete = self.listing.missing.is_empty();
        if complete && self.listing.pods_done && self.listing.namespaces_done {
            self.conditions.api.met();
            self.state.handle(Event::Listed, Instant::now());
        }
    }
}

/// A failed watch restarts by itself after a pause. What is known stays, so the agent stays ready.
fn received<T>(resource: &str, event: watcher::Result<T>) -> Option<T> {
    let report = |error: &watcher::Error| {
        telemetry::API_ERRORS.count();
        tracing::warn!(resource, error = chain(error), "failed to watch");
    };
    event.inspect_err(report).ok()
}

/// Reduces the pod of an event to what the state machine reads.
trait MapSeen {
    fn map_seen(self) -> Watched<(PodKey, Seen)>;
}

impl MapSeen for Watched<Pod> {
    fn map_seen(self) -> Watched<(PodKey, Seen)> {
        let reduce = |pod: Pod| {
            // Objects of the API server always have a name.
            let nameless = || PodKey { namespace: String::new(), name: String::new() };
            (cluster::key(&pod).unwrap_or_else(nameless), cluster::seen(&pod))
        };
        match self {
            Self::Apply(pod) => Watched::Apply(reduce(pod)),
            Self::Delete(pod) => Watched::Delete(reduce(pod)),
            Self::InitApply(pod) => Watched::InitApply(reduce(pod)),
            Self::Init => Watched::Init,
            Self::InitDone => Watched::InitDone,
        }
    }
}

/// The next item; never resolves if the stream has ended, which watches never do.
async fn next<S: Stream + Unpin>(stream: &mut S) -> S::Item {
    match stream.next().await {
        Some(item) => item,
        None => std::future::pending().await,
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The pod that a workload's uid names.
fn pod_of(uid: &str) -> Option<PodKey> {
    let (_, path) = uid.split_once("//Pod/")?;
    let (namespace, name) = path.split_once('/')?;
    Some(PodKey { namespace: namespace.to_owned(), name: name.to_owned() })
}
