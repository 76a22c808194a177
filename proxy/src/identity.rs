//! The identities of served workloads, as the mesh says: [`Identities`].

use std::sync::Arc;

use ambit_certificates::Certificates;
use ambit_core::mesh::Mesh;
use ambit_hbone::pool::Pool;

use crate::dial::Dialer;
use crate::sync::{Follower, MeshChange};
use crate::workload::{LocalWorkload, Served, Workloads};

/// Gives served workloads the identities that they have in the mesh.
#[derive(Debug)]
pub struct Identities<W: Served> {
    /// Where their certificates come from.
    pub certificates: Certificates,
    /// The workloads.
    pub workloads: Arc<Workloads<W>>,
    /// Their HBONE connections.
    pub pool: Pool<Dialer<W>>,
}

impl<W: Served> Identities<W> {
    /// Gives a workload the identity that it has in the mesh. Connections made under an earlier one take no
    /// more tunnels.
    pub fn identify(&self, mesh: &Mesh, workload: &LocalWorkload) {
        let identity = mesh.workload(&workload.uid).map(|workload| workload.identity());
        if workload.identify(identity.as_ref(), &self.certificates) {
            self.pool.retire_source(&workload.uid);
        }
    }
}

/// All that must follow the mesh in a proxy without a kernel's side.
impl<W: Served> Follower for Identities<W> {
    type Scope = ();

    fn void(&self, _: &MeshChange<'_>) {}

    fn follow(&self, change: &MeshChange<'_>) {
        for served in self.workloads.all() {
            let workload = served.workload();
            if change.touched.is_none_or(|touched| touched.workloads.contains(&workload.uid)) {
                self.identify(change.after, workload);
            }
        }
    }

    fn recheck(&self, (): ()) {}
}
