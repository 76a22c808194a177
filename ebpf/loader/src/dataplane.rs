//! A daemon's instance: opening it, and for each connection marking the daemon's own sockets and reading the
//! original destination.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_abi::{
    Accepted, Address, AffinityKey, Daemon, Destination, FlowEntry, Handoff, HandoffKey, KernelReason,
    LinkEntry, LinkFlow, ListenerKey, NetnsCookie, PartKey, Pod, PodName, PortKey, PortRule, RefusalBudget,
    Role, Service, Slot, SlotKey, Socket, SocketAddress, Tuple, VerdictEntry, VerdictKey, WorkloadNumber,
    limits, names,
};
use parking_lot::Mutex;

use crate::difference::Difference;
use crate::enrolled::Enrolled;
use crate::held::Held;
use crate::kept::Kept;
use crate::log::LogReader;
use crate::map::Map;
use crate::object::Object;
use crate::older;
use crate::pins::Pins;
use crate::ring::Ring;
use crate::shared::Shared;
use crate::{Error, Settings, bpf, clock};

/// Counts the entries of a map.
type Count<'a> = Box<dyn Fn() -> Result<(&'static str, usize), Error> + 'a>;

/// A captured connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The destination that the app passed to `connect()`.
    pub original_destination: SocketAddr,
    /// The endpoint that the kernel chose, if it has a table for the service.
    pub chosen: Option<SocketAddr>,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name.
    pub map: &'static str,
    /// How many entries it has.
    pub entries: usize,
    /// How many it can have.
    pub limit: usize,
}

/// The name of a map of counts by pod, and of how many pods there are counts.
fn of_pods(counts: &Map<NetnsCookie, u64>) -> Result<(&'static str, usize), Error> {
    let (name, entries) = counts.occupancy()?;
    Ok((name, entries - usize::from(counts.get(&NetnsCookie::ALL)?.is_some())))
}

/// An instance's programs and maps. Operations on single connections take no lock.
#[derive(Debug)]
pub struct Dataplane {
    pub(crate) settings: Settings,
    pub(crate) pins: Pins,
    pub(crate) object: Object,
    /// The programs of shared links, once they are loaded.
    pub(crate) link_programs: Mutex<Option<aya::Ebpf>>,
    /// Reads the programs' log, if they have one.
    _log: Option<LogReader>,
    /// The cgroup that the programs are attached to.
    pub(crate) cgroup: PathBuf,
    /// This daemon's number among those of the instance.
    pub(crate) number: u64,
    /// The programs on the cgroup, by their names.
    pub(crate) cgroup_links: Mutex<BTreeMap<&'static str, Held>>,
    /// The programs of the pods that this daemon serves.
    pub(crate) inbound_links: Mutex<BTreeMap<NetnsCookie, Held>>,
    /// The programs of shared links, by the interface at the node's end and their names.
    pub(crate) shared_links: Mutex<BTreeMap<(u32, &'static str), Held>>,
    /// What was put right since the last look, by something else than a look.
    pub(crate) repaired: Mutex<Vec<Difference>>,
    pub(crate) pods: Kept<NetnsCookie, Pod>,
    pub(crate) pod_names: Kept<NetnsCookie, PodName>,
    pub(crate) pod_handoffs: Map<NetnsCookie, u64>,
    pub(crate) ports: Kept<PortKey, PortRule>,
    /// Written with a socket's descriptor, read as a socket's cookie.
    pub(crate) listeners: Map<ListenerKey, u64>,
    pub(crate) daemon: Map<u32, Daemon>,
    pub(crate) host: Kept<u32, NetnsCookie>,
    pub(crate) probes: Map<Tuple, u64>,
    pub(crate) destinations: Kept<Address, Destination>,
    pub(crate) parts: Kept<PartKey, u8>,
    /// The contents of `PARTS`. Held while a destination changes.
    pub(crate) partial: Mutex<BTreeMap<Address, BTreeSet<PartKey>>>,
    pub(crate) destinations_incomplete: Kept<u32, u32>,
    /// How many destinations there are.
    pub(crate) destination_count: AtomicUsize,
    pub(crate) handoffs: Map<HandoffKey, Handoff>,
    pub(crate) sockets: Map<i32, Socket>,
    pub(crate) refusals: Map<u32, u64>,
    cpus: usize,
    /// Written with a socket's descriptor.
    pub(crate) own: Map<i32, u8>,
    /// Written by the programs.
    pub(crate) accepted: Map<i32, Accepted>,
    pub(crate) pod_flows: Map<NetnsCookie, u64>,
    pub(crate) generations: Kept<WorkloadNumber, u64>,
    pub(crate) verdicts: Map<VerdictKey, VerdictEntry>,
    pub(crate) lease: Map<u32, u64>,
    pub(crate) locals: Kept<Address, WorkloadNumber>,
    pub(crate) services: Kept<SocketAddress, Service>,
    pub(crate) endpoints: Kept<SlotKey, Slot>,
    pub(crate) sticky: Map<AffinityKey, SocketAddress>,
    pub(crate) flows: Map<Tuple, FlowEntry>,
    pub(crate) links: Kept<WorkloadNumber, LinkEntry>,
    pub(crate) link_flows: Map<Tuple, LinkFlow>,
    pub(crate) pod_link_flows: Map<NetnsCookie, u64>,
    pub(crate) records: [OwnedFd; 2],
    pub(crate) pod_refusals: Map<NetnsCookie, RefusalBudget>,
    /// Of established and of refused connections.
    pub(crate) rings: Mutex<[Ring; 2]>,
    pub(crate) shared_verdicts: Mutex<Shared<WorkloadNumber>>,
    pub(crate) shared_affinities: Mutex<Shared<WorkloadNumber>>,
    /// Held while a service's table changes.
    pub(crate) tables: Mutex<()>,
    /// The contents of `LOCALS`.
    pub(crate) own_addresses: Mutex<BTreeMap<WorkloadNumber, BTreeSet<Address>>>,
    /// The port rules of each pod. Held while a pod's entries are compared and changed.
    pub(crate) enrolled: Mutex<BTreeMap<NetnsCookie, Enrolled>>,
}

impl Dataplane {
    /// Attaches the instance to this kernel. Maps, links and enrolled pods of an earlier daemon are taken
    /// over; programs of another build are replaced.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let pins = Pins::create(settings)?;
        let lock = pins.lock()?;
        let object = Object::open(settings)?;
        let cgroup = settings.cgroup()?;
        object.attach_cgroup(&pins, &cgroup)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| Error::Cpus(source))?;
        let daemon: Map<u32, Daemon> = Map::open(&pins, names::DAEMON)?;
        let number = clock::fresh(daemon.get(&0)?.unwrap_or_default().number)?;
        let records = |name| {
            let path = pins.path(name);
            bpf::open_pin(&path).map_err(|source| Error::Pin { operation: "open map", path, source })
        };
        let dataplane = Self {
            settings: settings.clone(),
            cgroup,
            number,
            cgroup_links: Mutex::new(object.cgroup_links(&pins)?),
            inbound_links: Mutex::default(),
            shared_links: Mutex::default(),
            repaired: Mutex::default(),
            pods: Kept::open(&pins, names::PODS)?,
            pod_names: Kept::open(&pins, names::POD_NAMES)?,
            pod_handoffs: Map::open(&pins, names::POD_HANDOFFS)?,
            ports: Kept::open(&pins, names::PORTS)?,
            listeners: Map::open(&pins, names::LISTENERS)?,
            daemon,
            host: Kept::open(&pins, names::HOST)?,
            probes: Map::open(&pins, names::PROBES)?,
            destinations: Kept::open(&pins, names::DESTINATIONS)?,
            parts: Kept::open(&pins, names::PARTS)?,
            partial: Mutex::default(),
            destinations_incomplete: Kept::open(&pins, names::DESTINATIONS_INCOMPLETE)?,
            destination_count: AtomicUsize::new(0),
            handoffs: Map::open(&pins, names::HANDOFFS)?,
            sockets: Map::open(&pins, names::SOCKETS)?,
            refusals: Map::open(&pins, names::REFUSALS)?,
            cpus,
            own: Map::open(&pins, names::OWN)?,
            accepted: Map::open(&pins, names::ACCEPTED)?,
            pod_flows: Map::open(&pins, names::POD_FLOWS)?,
            generations: Kept::open(&pins, names::GENERATIONS)?,
            verdicts: Map::open(&pins, names::VERDICTS)?,
            lease: Map::open(&pins, names::LEASE)?,
            locals: Kept::open(&pins, names::LOCALS)?,
            services: Kept::open(&pins, names::SERVICES)?,
            endpoints: Kept::open(&pins, names::ENDPOINTS)?,
            sticky: Map::open(&pins, names::STICKY)?,
            flows: Map::open(&pins, names::FLOWS)?,
            links: Kept::open(&pins, names::LINKS)?,
            link_flows: Map::open(&pins, names::LINK_FLOWS)?,
            pod_link_flows: Map::open(&pins, names::POD_LINK_FLOWS)?,
            records: [records(names::RECORDS)?, records(names::REFUSAL_RECORDS)?],
            pod_refusals: Map::open(&pins, names::POD_REFUSALS)?,
            rings: Mutex::new([
                Ring::open(&pins, names::RECORDS, limits::RECORDS)?,
                Ring::open(&pins, names::REFUSAL_RECORDS, limits::REFUSAL_RECORDS)?,
            ]),
            shared_verdicts: Mutex::new(Shared::count(limits::VERDICTS, [])),
            shared_affinities: Mutex::new(Shared::count(limits::STICKY, [])),
            tables: Mutex::default(),
            own_addresses: Mutex::default(),
            enrolled: Mutex::default(),
            link_programs: Mutex::default(),
            _log: LogReader::start(&object, &pins)?,
            object,
            pins,
        };
        dataplane.read_enrolled()?;
        dataplane.read_direct()?;
        dataplane.read_parts()?;
        dataplane.is_newest()?;
        dataplane.count_shared()?;
        drop(lock);
        Ok(dataplane)
    }

    /// Sets the node's network namespace: connections from processes in it may go to declared probe ports
    /// under any policy.
    pub fn set_host(&self, host: NetnsCookie) -> Result<(), Error> {
        self.host.put(&0, &host)
    }

    /// Removes what older versions of the interface left, as far as no pod and no connection uses it; returns
    /// how many versions.
    pub fn remove_older(&self) -> Result<usize, Error> {
        older::remove_unused(&self.settings)
    }

    /// Captures connections to destinations that are not listed too, or no longer does.
    pub fn capture_all(&self, all: bool) -> Result<(), Error> {
        self.destinations_incomplete.put(&0, &u32::from(all))
    }

    /// The original destination of an accepted socket. None: the connection was not captured, an app
    /// connected to the listener itself.
    pub fn original_destination(&self, accepted: BorrowedFd<'_>) -> Result<Option<Captured>, Error> {
        let socket = self.sockets.get(&accepted.as_raw_fd())?;
        let captured = socket.filter(|socket| socket.role == Role::Captured as u32);
        Ok(captured.map(|socket| Captured {
            original_destination: socket.address.with_port(socket.port),
            chosen: (!socket.endpoint.is_unset())
                .then(|| socket.endpoint.address.with_port(socket.endpoint.port)),
        }))
    }

    /// Marks the daemon's own socket to a peer, before `connect()`: the programs ignore it.
    pub fn mark_outbound(&self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.sockets.put(&socket.as_raw_fd(), &Socket::new(Role::Outbound, Address::default(), 0))
    }

    /// Marks the daemon's own socket to an app, before `connect()`: the app will see `client` as its peer.
    pub fn mark_inbound(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> Result<(), Error> {
        let value = Socket::new(Role::Inbound, client.ip().into(), client.port());
        self.sockets.put(&socket.as_raw_fd(), &value)
    }

    /// The number of refusals for each reason, since the instance was attached.
    pub fn counters(&self) -> Result<Vec<(KernelReason, u64)>, Error> {
        KernelReason::ALL.iter().map(|reason| Ok((*reason, self.counter(*reason)?))).collect()
    }

    /// The number of refusals for this reason.
    pub fn counter(&self, reason: KernelReason) -> Result<u64, Error> {
        let counts = bpf::lookup_each_cpu(&self.refusals, reason as u32, self.cpus);
        let error = |source| Error::Map { operation: "read from", map: names::REFUSALS, source };
        counts.map(|counts| counts.iter().sum()).map_err(error)
    }

    /// The number of entries of each map that changes at run time.
    pub fn occupancy(&self) -> Result<BTreeMap<&'static str, usize>, Error> {
        Ok([
            self.pods.occupancy()?,
            self.pod_names.occupancy()?,
            of_pods(&self.pod_handoffs)?,
            of_pods(&self.pod_flows)?,
            self.pod_refusals.occupancy()?,
            self.ports.occupancy()?,
            self.destinations.occupancy()?,
            self.parts.occupancy()?,
            self.probes.occupancy()?,
            self.handoffs.occupancy()?,
            self.generations.occupancy()?,
            self.verdicts.occupancy()?,
            self.locals.occupancy()?,
            self.services.occupancy()?,
            self.endpoints.occupancy()?,
            self.sticky.occupancy()?,
            self.flows.occupancy()?,
            self.links.occupancy()?,
            self.link_flows.occupancy()?,
            of_pods(&self.pod_link_flows)?,
        ]
        .into())
    }

    /// How full the maps are that pods share or that grow with the mesh. Reads no map whole.
    pub fn fill(&self) -> Result<Vec<Fill>, Error> {
        let all = |counts: &Map<NetnsCookie, u64>| -> Result<usize, Error> {
            let count = counts.get(&NetnsCookie::ALL)?.unwrap_or_default().cast_signed();
            Ok(usize::try_from(count).unwrap_or_default())
        };
        let rules = self.enrolled.lock().values().map(|pod| pod.rules.len()).sum();
        let filled = |(map, entries, limit): (_, _, u32)| Fill { map, entries, limit: limit as usize };
        Ok([
            (names::DESTINATIONS, self.destination_count.load(Ordering::Relaxed), limits::DESTINATIONS),
            (names::FLOWS, all(&self.pod_flows)?, limits::FLOWS),
            (names::HANDOFFS, all(&self.pod_handoffs)?, limits::HANDOFFS),
            (names::LINK_FLOWS, all(&self.pod_link_flows)?, limits::LINK_FLOWS),
            (names::PARTS, self.partial.lock().values().map(BTreeSet::len).sum(), limits::PARTS),
            (names::PODS, self.enrolled.lock().len(), limits::PODS),
            (names::PORTS, rules, limits::PORTS),
            (names::STICKY, self.shared_affinities.lock().len(), limits::STICKY),
            (names::VERDICTS, self.shared_verdicts.lock().len(), limits::VERDICTS),
        ]
        .map(filled)
        .into())
    }

    /// The counts that the programs keep, by pod and of all, and how many entries are in the map they are of.
    pub(crate) fn counted(&self) -> [(&Map<NetnsCookie, u64>, Count<'_>); 3] {
        [
            (&self.pod_flows, Box::new(|| self.flows.occupancy())),
            (&self.pod_handoffs, Box::new(|| self.handoffs.occupancy())),
            (&self.pod_link_flows, Box::new(|| self.link_flows.occupancy())),
        ]
    }

    /// Makes the counts of all pods that are missing: in a new instance, or because somebody took them away.
    pub(crate) fn count_all(&self) -> Result<(), Error> {
        for (counts, entries) in self.counted() {
            if counts.get(&NetnsCookie::ALL)?.is_none() {
                let (_, entries) = entries()?;
                counts.put_new(&NetnsCookie::ALL, &u64::try_from(entries).unwrap_or_default())?;
            }
        }
        Ok(())
    }

    /// Counts what is in the shared maps.
    fn count_shared(&self) -> Result<(), Error> {
        self.count_all()?;
        self.destination_count.store(self.destinations.entries()?.len(), Ordering::Relaxed);
        let sources = self.verdicts.entries()?.into_iter().map(|(key, _)| key.source);
        *self.shared_verdicts.lock() = Shared::count(limits::VERDICTS, sources);
        let clients = self.sticky.entries()?.into_iter().map(|(key, _)| key.source);
        *self.shared_affinities.lock() = Shared::count(limits::STICKY, clients);
        Ok(())
    }

    /// The number of hand-offs that have not been taken yet.
    pub fn pending_handoffs(&self) -> Result<usize, Error> {
        self.handoffs.keys().map(|keys| keys.len())
    }
}
