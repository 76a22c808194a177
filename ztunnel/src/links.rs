//! The links of this node's enrolled pods: read when a pod is enrolled and when the kernel tells of a change,
//! classified by `ambit_core::link`, and told to the kernel programs, which make no connection direct where a
//! link is of an unknown kind.
//!
//! Entry points: [`Links::enrolled`], [`Links::node_network`], then [`follow`].

mod facts;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::chain;
use ambit_core::link::{Link, Unknown, classify};
use ambit_core::model::WorkloadUid;
use ambit_daemon_kit::telemetry::instruments::Counter;
use ambit_diag::{Change, LinkEvents};
use ambit_enrol::NetworkNamespace;
use ambit_loader::{Dataplane, Difference, LinkKind, PodLink, WorkloadNumber};
use parking_lot::Mutex;

use crate::error::Error;
use crate::netns::within;
use crate::pods::Pod;

use facts::Found;

/// How long the thread waits for changes before it looks whether it is to follow another namespace.
const PATIENCE: Duration = Duration::from_millis(500);
/// How many waits pass before all links are read again: an event may have been lost.
const ROUNDS: u32 = 20;

/// Moves of pods' addresses in the tables of bridges.
pub(crate) static ADDRESS_MOVES: Counter = Counter::new(
    "ambit_link_address_moves_total",
    "How often a bridge learnt a pod's Ethernet address behind another port: a neighbour sends as the pod.",
);

/// The links of this node.
pub(crate) struct Links {
    dataplane: Arc<Dataplane>,
    /// The operator declares the node's links trusted.
    trusted: bool,
    state: Mutex<State>,
}

struct State {
    node: Node,
    pods: BTreeMap<WorkloadUid, Known>,
}

/// The node's network namespace.
#[derive(Clone)]
enum Node {
    /// The daemon's own.
    Own,
    /// Not told yet.
    Untold,
    /// Told by the node agent.
    Told(Arc<NetworkNamespace>),
}

struct Known {
    pod: Arc<Pod>,
    number: WorkloadNumber,
    link: Link,
    /// As the kernel was told, if it is of a known kind.
    told: Option<PodLink>,
}

/// A pod's link, for views.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) uid: WorkloadUid,
    pub(crate) link: Link,
    /// The index of the interface at the node's end.
    pub(crate) interface: Option<u32>,
}

impl Links {
    /// `own`: the daemon lives in the node's network namespace.
    pub(crate) fn new(dataplane: Arc<Dataplane>, trusted: bool, own: bool) -> Self {
        let node = if own { Node::Own } else { Node::Untold };
        Self { dataplane, trusted, state: Mutex::new(State { node, pods: BTreeMap::new() }) }
    }

    /// A pod is enrolled.
    pub(crate) fn enrolled(&self, pod: &Arc<Pod>, number: WorkloadNumber) {
        let mut state = self.state.lock();
        let link = Link::Unknown(Unknown::Unread("not yet".to_owned()));
        let mut known = Known { pod: pod.clone(), number, link, told: None };
        self.examine(&state.node, &mut known);
        if let Link::Unknown(why) = &known.link {
            tracing::warn!(uid = %pod.workload.uid, %why, "link of unknown kind: no direct connections");
        }
        state.pods.insert(pod.workload.uid.clone(), known);
    }

    /// A pod has left.
    pub(crate) fn released(&self, uid: &WorkloadUid) {
        self.state.lock().pods.remove(uid);
    }

    /// The node agent tells the node's network namespace.
    pub(crate) fn node_network(&self, namespace: NetworkNamespace) -> bool {
        let mut state = self.state.lock();
        match &state.node {
            Node::Own => return false,
            Node::Told(known) if known.id() == namespace.id() => return false,
            Node::Told(_) | Node::Untold => state.node = Node::Told(Arc::new(namespace)),
        }
        drop(state);
        self.examine_those(|_| true)
    }

    /// Whether direct connections may go over the links of two pods.
    pub(crate) fn carry(&self, source: &WorkloadUid, destination: &WorkloadUid) -> bool {
        self.both(source, destination, Link::carries)
    }

    /// Whether open direct connections over the links of two pods must end.
    pub(crate) fn forbid(&self, source: &WorkloadUid, destination: &WorkloadUid) -> bool {
        self.both(source, destination, Link::forbids)
    }

    /// Whether both links are there and `holds` of them.
    fn both(
        &self,
        source: &WorkloadUid,
        destination: &WorkloadUid,
        holds: impl Fn(&Link, &Link) -> bool,
    ) -> bool {
        let state = self.state.lock();
        let link = |uid| state.pods.get(uid).map(|known| &known.link);
        link(source).zip(link(destination)).is_some_and(|(one, other)| holds(one, other))
    }

    /// The kind of a pod's link.
    pub(crate) fn kind(&self, uid: &WorkloadUid) -> Option<&'static str> {
        self.state.lock().pods.get(uid).map(|known| known.link.name())
    }

    /// All of them.
    pub(crate) fn views(&self) -> Vec<View> {
        let state = self.state.lock();
        let view = |(uid, known): (&WorkloadUid, &Known)| View {
            uid: uid.clone(),
            link: known.link.clone(),
            interface: known.told.map(|told| told.interface).filter(|index| *index != 0),
        };
        state.pods.iter().map(view).collect()
    }

    /// Counts a pod's address that a bridge has learnt behind another port than the pod's.
    fn learnt(&self, change: &Change) {
        let Change::Learnt { port, address } = change else { return };
        let state = self.state.lock();
        let mut links = state.pods.iter().filter_map(|(uid, known)| Some((uid, known.told?)));
        if let Some((uid, _)) = links.find(|(_, told)| told.pod == *address && told.interface != *port) {
            tracing::debug!(%uid, port, "a bridge learnt the pod's address behind another port");
            ADDRESS_MOVES.count();
        }
    }

    /// Reads some links again; whether one has changed.
    fn examine_those(&self, which: impl Fn(&Known) -> bool) -> bool {
        let mut state = self.state.lock();
        let State { node, pods } = &mut *state;
        let mut changed = false;
        for known in pods.values_mut().filter(|known| which(known)) {
            changed |= self.examine(node, known);
        }
        changed
    }

    /// Reads a link and tells the kernel of what kind it is; whether that has changed.
    fn examine(&self, node: &Node, known: &mut Known) -> bool {
        let uid = &known.pod.workload.uid;
        let (mut link, found) = match self.find(node, &known.pod) {
            Ok(found) => (self.prepare(node, classify(&found.facts, self.trusted), &found), found),
            Err(_) if self.trusted => (Link::Trusted, Found::default()),
            Err(why) => (Link::Unknown(Unknown::Unread(why)), Found::default()),
        };
        let kind = match link {
            Link::Isolated => Some(LinkKind::Isolated),
            Link::Shared => Some(LinkKind::Shared),
            Link::Trusted => Some(LinkKind::Trusted),
            Link::Unknown(_) => None,
        };
        let mut told = kind.map(|kind| PodLink {
            kind,
            interface: found.interface,
            pod: found.pod,
            bridge: found.bridge,
        });
        if told != known.told
            && let Err(error) = self.dataplane.set_link(known.number, told.as_ref())
        {
            tracing::error!(%uid, error = chain(&error), "failed to write a pod's link");
            (link, told) = (Link::Unknown(Unknown::Unread(chain(&error))), None);
        }
        let changed = link != known.link || told != known.told;
        if changed {
            tracing::info!(%uid, kind = link.name(), interface = found.interface, "link of a pod");
        }
        (known.link, known.told) = (link, told);
        changed
    }

    /// Compares the programs on shared links with what should be there; whether the kind of a link changed.
    pub(crate) fn put_right(&self, found: &mut Vec<Difference>) -> Result<bool, String> {
        let mut state = self.state.lock();
        let State { node, pods } = &mut *state;
        let is_shared = |told: &PodLink| told.kind == LinkKind::Shared;
        let shared: BTreeSet<u32> =
            pods.values().filter_map(|known| known.told.filter(is_shared)).map(|it| it.interface).collect();
        if shared.is_empty() {
            return Ok(false);
        }
        let foreign = node.inside(|| self.dataplane.put_links_right(&shared, found));
        let foreign = foreign.map_err(|error| error.to_string())?.map_err(|error| chain(&error))?;
        let mut changed = false;
        let to_read = |known: &Known| known.told.is_some_and(|told| foreign.contains(&told.interface));
        for known in pods.values_mut().filter(|known| to_read(known)) {
            changed |= self.examine(node, known);
        }
        Ok(changed)
    }

    fn find(&self, node: &Node, pod: &Pod) -> Result<Found, String> {
        match node {
            Node::Own => facts::find(&self.dataplane, pod, None),
            Node::Told(namespace) => facts::find(&self.dataplane, pod, Some(namespace)),
            Node::Untold => Err("the node agent has not told the node's network namespace".to_owned()),
        }
    }

    /// Attaches what a shared link needs.
    fn prepare(&self, node: &Node, link: Link, found: &Found) -> Link {
        if link != Link::Shared {
            return link;
        }
        let failed = match node.inside(|| self.dataplane.attach_link(found.interface)) {
            Ok(Ok(())) => return link,
            Ok(Err(error)) => chain(&error),
            Err(error) => error.to_string(),
        };
        Link::Unknown(Unknown::Unattached(failed))
    }
}

/// What follows the namespace of the node as it is known now.
fn events_of(node: &Node) -> Option<LinkEvents> {
    if matches!(node, Node::Untold) {
        return None;
    }
    let opened = node.inside(|| LinkEvents::open(PATIENCE));
    match opened.map_err(ambit_diag::Error::Open).flatten() {
        Ok(events) => Some(events),
        Err(error) => {
            tracing::error!(error = chain(&error), "failed to follow the node's links");
            None
        }
    }
}

/// Starts the thread that follows the node's links. `changed` is called when a pod's has changed.
pub(crate) fn follow(links: Arc<Links>, changed: impl Fn() + Send + 'static) -> Result<(), Error> {
    std::thread::Builder::new()
        .name("links".to_owned())
        .spawn(move || watch(&links, changed))
        .map(drop)
        .map_err(|source| Error::System { operation: "start the thread that follows links", source })
}

/// A thread and not a task: it enters namespaces and reads links, which blocks.
fn watch(links: &Links, changed: impl Fn()) {
    let mut followed: Option<(Node, LinkEvents)> = None;
    let mut rounds = 0;
    loop {
        let node = links.state.lock().node.clone();
        if followed.as_ref().is_none_or(|(of, _)| !of.is(&node)) {
            followed = events_of(&node).map(|events| (node, events));
            // What changed before cannot be told.
            rounds = ROUNDS;
        }
        let Some((_, events)) = &mut followed else {
            std::thread::sleep(PATIENCE);
            continue;
        };
        let any = match events.wait() {
            Ok(found) if found.is_empty() && rounds < ROUNDS => {
                rounds += 1;
                continue;
            }
            Ok(found) if rounds < ROUNDS => {
                for change in &found {
                    links.learnt(change);
                }
                let touched = |index: u32| found.contains(&Change::Interface(index));
                let any = found.iter().any(|change| matches!(change, Change::Interface(_)));
                // What a link of an unknown kind lacked may have come.
                any && links.examine_those(|known| known.told.is_none_or(|told| touched(told.interface)))
            }
            result => {
                if let Err(error) = result {
                    tracing::warn!(error = chain(&error), "changes of links lost, all are read again");
                }
                rounds = 0;
                links.examine_those(|_| true)
            }
        };
        if any {
            changed();
        }
    }
}

impl Node {
    /// Works with the thread in the node's network namespace.
    fn inside<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        match self {
            Self::Told(namespace) => within(namespace, || Ok(work())),
            Self::Own | Self::Untold => Ok(work()),
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Own, Self::Own) | (Self::Untold, Self::Untold) => true,
            (Self::Told(one), Self::Told(other)) => one.id() == other.id(),
            _ => false,
        }
    }
}
