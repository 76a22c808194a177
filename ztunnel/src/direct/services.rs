//! The kernel's choice of endpoints, kept equal to the daemon's: a table for each service that has an
//! endpoint which can be reached directly. What can go wrong is only that the kernel leaves the choice to the
//! daemon for longer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::balance;
use ambit_core::direct::eligible;
use ambit_core::mesh::{Mesh, Touched};
use ambit_core::model::{Affinity, Service, ServiceKey, Workload, WorkloadUid};
use ambit_core::outbound::Tunnel;
use ambit_core::outlier::Ejected;
use ambit_loader::{Dataplane, Table, WorkloadNumber};
use parking_lot::Mutex;

use crate::daemon::Node;
use crate::pods::Pod;
use crate::report::chain;

/// What the kernel was told.
pub(super) struct Services(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    tables: BTreeMap<ServiceKey, BTreeMap<SocketAddr, Table>>,
    /// Of earlier daemons: removed when all services are known.
    inherited: BTreeSet<SocketAddr>,
    /// To be tried again.
    failed: BTreeSet<ServiceKey>,
}

impl Services {
    pub(super) fn new(inherited: BTreeSet<SocketAddr>) -> Self {
        Self(Mutex::new(Told { inherited, ..Told::default() }))
    }

    /// Follows a change of the mesh.
    pub(super) fn follow(&self, node: &Node, before: &Mesh, after: &Mesh, touched: &Touched) {
        // A client's place among its node's others may decide about all tables.
        let moved = |uid: &WorkloadUid| place(before, uid) != place(after, uid);
        let mut local =
            touched.workloads.iter().filter(|uid| is_on(before, uid, node) || is_on(after, uid, node));
        if local.any(moved) {
            return self.follow_all(node);
        }
        let mut keys = touched.services.clone();
        for mesh in [before, after] {
            let workloads = touched.workloads.iter().filter_map(|uid| mesh.workload(uid));
            keys.extend(workloads.flat_map(|workload| workload.services.keys().cloned()));
            let sharing = touched.addresses.iter().flat_map(|address| mesh.services_by_address(*address));
            keys.extend(sharing.map(|service| service.key.clone()));
        }
        self.write(node, |_| keys);
    }

    /// A pod came or left: what it stands behind has a choice in the kernel, or needs none any more.
    pub(super) fn follow_pod(&self, node: &Node, uid: &WorkloadUid) {
        let keys = |mesh: &Mesh| mesh.workload(uid).map(|w| w.services.keys().cloned().collect());
        self.write(node, |mesh| keys(mesh).unwrap_or_default());
    }

    /// Looks at all services.
    pub(super) fn follow_all(&self, node: &Node) {
        let told: BTreeSet<_> = self.0.lock().tables.keys().cloned().collect();
        self.write(node, |mesh| mesh.services().map(|service| service.key.clone()).chain(told).collect());
        let mut told = self.0.lock();
        let wanted: BTreeSet<_> = told.tables.values().flat_map(BTreeMap::keys).copied().collect();
        let dataplane = node.kernel.dataplane();
        told.inherited.retain(|address| {
            !wanted.contains(address)
                && is_err(&dataplane.remove_service(*address), "removing a choice of endpoints")
        });
    }

    /// Tries again what failed.
    pub(super) fn retry(&self, node: &Node) {
        if !self.0.lock().failed.is_empty() {
            self.write(node, |_| BTreeSet::new());
        }
    }

    /// By the newest mesh, whoever asks: those who ask do so from several threads.
    fn write(&self, node: &Node, keys: impl FnOnce(&Mesh) -> BTreeSet<ServiceKey>) {
        let mut told = self.0.lock();
        let Some(mesh) = node.state.mesh() else { return };
        let choice = Choice::new(node, &mesh);
        let dataplane = node.kernel.dataplane();
        let failed = std::mem::take(&mut told.failed);
        for key in failed.into_iter().chain(keys(&mesh)) {
            let wanted = choice.tables(&key);
            if !tell(dataplane, told.tables.get(&key), &wanted) {
                told.failed.insert(key.clone());
            }
            if wanted.is_empty() {
                told.tables.remove(&key);
            } else {
                told.tables.insert(key, wanted);
            }
        }
    }

    /// Tells the kernel which endpoint a client of a service with affinity has.
    pub(super) fn stick(
        &self,
        node: &Node,
        mesh: &Mesh,
        source: &Pod,
        number: WorkloadNumber,
        tunnel: &Tunnel,
        asked: SocketAddr,
    ) {
        let Some(service) = &tunnel.service else { return };
        if service.load_balancing.affinity != Affinity::ClientIp || !self.has(&service.key, asked) {
            return;
        }
        let Some(client) = mesh.workload(&source.uid) else { return };
        let ejected = node.endpoints.ejected();
        if balance::sticky(mesh, client, service, asked, &ejected) != Some(tunnel.authority) {
            return;
        }
        let dataplane = node.kernel.dataplane();
        is_err(&dataplane.stick(number, asked, tunnel.authority), "writing a client's endpoint");
        // A change that came in between has already made all clients' endpoints void, but not this one.
        if node.state.mesh().is_none_or(|now| !std::ptr::eq(&raw const *now, &raw const *mesh)) {
            is_err(&dataplane.unstick(asked), "removing clients' endpoints");
        }
    }

    fn has(&self, key: &ServiceKey, asked: SocketAddr) -> bool {
        self.0.lock().tables.get(key).is_some_and(|tables| tables.contains_key(&asked))
    }
}

fn is_on(mesh: &Mesh, uid: &WorkloadUid, node: &Node) -> bool {
    mesh.workload(uid).is_some_and(|workload| *workload.node == *node.config.node)
}

/// What makes one client of a node another than the next.
fn place<'a>(mesh: &'a Mesh, uid: &WorkloadUid) -> Option<impl PartialEq + 'a> {
    let place = |w: &'a Arc<Workload>| (&w.locality, &w.network, &w.cluster, &w.node, w.in_mesh());
    mesh.workload(uid).map(place)
}

/// What a choice depends on.
struct Choice<'a> {
    mesh: &'a Mesh,
    /// The pods of this daemon.
    local: BTreeSet<WorkloadUid>,
    ejected: Arc<Ejected>,
    enabled: bool,
}

impl<'a> Choice<'a> {
    fn new(node: &Node, mesh: &'a Mesh) -> Self {
        let local = node.pods.all().iter().map(|pod| pod.uid.clone()).collect();
        Self { mesh, local, ejected: node.endpoints.ejected(), enabled: node.direct.settings.enabled }
    }

    /// The tables of a service: none if none of its endpoints can be reached directly.
    fn tables(&self, key: &ServiceKey) -> BTreeMap<SocketAddr, Table> {
        let mut tables = BTreeMap::new();
        let Some(service) = self.mesh.service(key).filter(|service| self.is_of_use(service)) else {
            return tables;
        };
        for address in &service.addresses {
            for port in &service.ports {
                let asked = SocketAddr::new(address.to_canonical(), port.port);
                if let Some(table) = self.table(service, asked) {
                    tables.insert(asked, table);
                }
            }
        }
        tables
    }

    fn is_of_use(&self, service: &Service) -> bool {
        let mut endpoints = self.mesh.endpoints(&service.key);
        self.enabled
            && endpoints.any(|endpoint| self.local.contains(&endpoint.uid) && eligible(endpoint).is_ok())
    }

    fn table(&self, service: &Service, asked: SocketAddr) -> Option<Table> {
        if service.load_balancing.affinity == Affinity::ClientIp {
            return service.waypoint.is_none().then_some(Table::Affinity);
        }
        // Whichever: there is no table where it matters which.
        let client = self.local.iter().find_map(|uid| self.mesh.workload(uid))?;
        let shares = balance::table(self.mesh, client, service, asked, &self.ejected);
        (!shares.is_empty()).then_some(Table::Weighted(shares))
    }
}

/// Brings the kernel from one set of a service's tables to another; false if something is left to do.
fn tell(
    dataplane: &Dataplane,
    told: Option<&BTreeMap<SocketAddr, Table>>,
    wanted: &BTreeMap<SocketAddr, Table>,
) -> bool {
    let mut all = true;
    for (address, table) in wanted {
        let before = told.and_then(|told| told.get(address));
        if before != Some(table) {
            all &= !is_err(&dataplane.set_service(*address, table), "writing a choice of endpoints");
        }
        // Its endpoints may be others now, and each client's with them.
        if *table == Table::Affinity || before == Some(&Table::Affinity) {
            all &= !is_err(&dataplane.unstick(*address), "removing clients' endpoints");
        }
    }
    for (address, table) in told.into_iter().flatten().filter(|(address, _)| !wanted.contains_key(*address)) {
        all &= !is_err(&dataplane.remove_service(*address), "removing a choice of endpoints");
        if *table == Table::Affinity {
            all &= !is_err(&dataplane.unstick(*address), "removing clients' endpoints");
        }
    }
    all
}

fn is_err(result: &Result<(), ambit_loader::Error>, operation: &'static str) -> bool {
    if let Err(error) = result {
        tracing::warn!(operation, error = chain(error), "the kernel's choice of endpoints");
    }
    result.is_err()
}
