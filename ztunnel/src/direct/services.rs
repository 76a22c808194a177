//! The kernel's choice of endpoints, kept equal to the daemon's: a table for each service that has an
//! endpoint which can be reached directly. What can go wrong is only that the kernel leaves the choice to the
//! daemon for longer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::direct::eligible;
use ambit_core::mesh::{Mesh, Touched};
use ambit_core::model::{Affinity, Service, ServiceKey, Workload, WorkloadUid};
use ambit_core::outbound::Tunnel;
use ambit_core::outlier::Ejected;
use ambit_core::{balance, chain};
use ambit_loader::{Dataplane, Table, WorkloadNumber};
use parking_lot::Mutex;

use super::context::Context;
use super::share;
use crate::pods::Pod;

/// The kernel's tables of endpoints.
pub(super) struct Services {
    context: Arc<Context>,
    written: Mutex<Written>,
}

/// What was written to the kernel.
#[derive(Debug, Default)]
struct Written {
    tables: BTreeMap<ServiceKey, BTreeMap<SocketAddr, Table>>,
    /// Of earlier daemons: removed when all services are known.
    inherited: BTreeSet<SocketAddr>,
    /// To be tried again.
    failed: BTreeSet<ServiceKey>,
}

impl Services {
    pub(super) fn new(context: Arc<Context>, inherited: BTreeSet<SocketAddr>) -> Self {
        Self { context, written: Mutex::new(Written { inherited, ..Written::default() }) }
    }

    /// Follows a change of the mesh.
    pub(super) fn follow(&self, before: &Mesh, after: &Mesh, touched: &Touched) {
        // Tables hold for all clients of the node, so what distinguishes one may change them all.
        let moved = |uid: &WorkloadUid| place(before, uid) != place(after, uid);
        let mut local =
            touched.workloads.iter().filter(|uid| self.is_local(before, uid) || self.is_local(after, uid));
        if local.any(moved) {
            return self.follow_all();
        }
        let mut keys = touched.services.clone();
        for mesh in [before, after] {
            let workloads = touched.workloads.iter().filter_map(|uid| mesh.workload(uid));
            keys.extend(workloads.flat_map(|workload| workload.services.keys().cloned()));
            let sharing = touched.addresses.iter().flat_map(|address| mesh.services_by_address(*address));
            keys.extend(sharing.map(|service| service.key.clone()));
        }
        self.write(|_| keys);
    }

    /// A pod came or left: the services it is an endpoint of get a table in the kernel, or lose it.
    pub(super) fn follow_pod(&self, uid: &WorkloadUid) {
        let keys = |mesh: &Mesh| mesh.workload(uid).map(|w| w.services.keys().cloned().collect());
        self.write(|mesh| keys(mesh).unwrap_or_default());
    }

    /// Looks at all services.
    pub(super) fn follow_all(&self) {
        let written: BTreeSet<_> = self.written.lock().tables.keys().cloned().collect();
        self.write(|mesh| mesh.services().map(|service| service.key.clone()).chain(written).collect());
        let mut written = self.written.lock();
        let wanted: BTreeSet<_> = written.tables.values().flat_map(BTreeMap::keys).copied().collect();
        let dataplane = &self.context.dataplane;
        written.inherited.retain(|address| {
            !wanted.contains(address)
                && is_err(&dataplane.remove_service(*address), "remove a table of endpoints")
        });
    }

    /// Tries again what failed.
    pub(super) fn retry(&self) {
        if !self.written.lock().failed.is_empty() {
            self.write(|_| BTreeSet::new());
        }
    }

    /// By the newest mesh: several threads call this, and the caller's mesh may be an older one.
    fn write(&self, keys: impl FnOnce(&Mesh) -> BTreeSet<ServiceKey>) {
        let mut written = self.written.lock();
        let Some(mesh) = self.context.proxy.mesh.mesh() else { return };
        let choice = Choice::new(&self.context, &mesh);
        let dataplane = &self.context.dataplane;
        let failed = std::mem::take(&mut written.failed);
        for key in failed.into_iter().chain(keys(&mesh)) {
            let wanted = choice.tables(&key);
            if !replace(dataplane, written.tables.get(&key), &wanted) {
                written.failed.insert(key.clone());
            }
            if wanted.is_empty() {
                written.tables.remove(&key);
            } else {
                written.tables.insert(key, wanted);
            }
        }
    }

    /// Writes to the kernel which endpoint a client of a service with affinity has.
    pub(super) fn stick(
        &self,
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
        let Some(client) = mesh.workload(&source.workload.uid) else { return };
        let ejected = self.context.proxy.endpoints.ejected();
        if balance::sticky(mesh, client, service, asked, &ejected) != Some(tunnel.authority) {
            return;
        }
        let dataplane = &self.context.dataplane;
        let written = dataplane.set_affinity(number, asked, tunnel.authority);
        share::count_if_used(&written, "STICKY");
        is_err(&written, "write a client's endpoint");
        // A change in between has removed all clients' endpoints, but not this one.
        if self.context.proxy.mesh.mesh().is_none_or(|now| !std::ptr::eq(&raw const *now, &raw const *mesh)) {
            is_err(&dataplane.clear_affinity(asked), "remove clients' endpoints");
        }
    }

    fn is_local(&self, mesh: &Mesh, uid: &WorkloadUid) -> bool {
        mesh.workload(uid).is_some_and(|workload| *workload.node == *self.context.node)
    }

    fn has(&self, key: &ServiceKey, asked: SocketAddr) -> bool {
        self.written.lock().tables.get(key).is_some_and(|tables| tables.contains_key(&asked))
    }
}

/// What distinguishes one client of a node from another.
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
    fn new(context: &Context, mesh: &'a Mesh) -> Self {
        let local = context.pods.all().iter().map(|pod| pod.workload.uid.clone()).collect();
        Self { mesh, local, ejected: context.proxy.endpoints.ejected(), enabled: context.enabled }
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
            return service.acting_waypoint().is_none().then_some(Table::Affinity);
        }
        // Any of them: where it matters which, there is no table.
        let client = self.local.iter().find_map(|uid| self.mesh.workload(uid))?;
        let shares = balance::table(self.mesh, client, service, asked, &self.ejected);
        (!shares.is_empty()).then_some(Table::Weighted(shares))
    }
}

/// Replaces one set of a service's tables by another; false if something is left to do.
fn replace(
    dataplane: &Dataplane,
    written: Option<&BTreeMap<SocketAddr, Table>>,
    wanted: &BTreeMap<SocketAddr, Table>,
) -> bool {
    let mut all = true;
    for (address, table) in wanted {
        let before = written.and_then(|written| written.get(address));
        if before != Some(table) {
            all &= !is_err(&dataplane.set_service(*address, table), "write a table of endpoints");
        }
        // Its endpoints may have changed, and each client's with them.
        if *table == Table::Affinity || before == Some(&Table::Affinity) {
            all &= !is_err(&dataplane.clear_affinity(*address), "remove clients' endpoints");
        }
    }
    for (address, table) in
        written.into_iter().flatten().filter(|(address, _)| !wanted.contains_key(*address))
    {
        all &= !is_err(&dataplane.remove_service(*address), "remove a table of endpoints");
        if *table == Table::Affinity {
            all &= !is_err(&dataplane.clear_affinity(*address), "remove clients' endpoints");
        }
    }
    all
}

fn is_err<T>(result: &Result<T, ambit_loader::Error>, operation: &'static str) -> bool {
    if let Err(error) = result {
        tracing::warn!(operation, error = chain(error), "failed to update the kernel's tables of endpoints");
    }
    result.is_err()
}
