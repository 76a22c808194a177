//! What follows the mesh beside decisions: the waypoint's own identity ([`Identity`]).

use std::sync::Arc;

use ambit_certificates::Certificates;
use ambit_hbone::pool::Pool;
use ambit_proxy::dial::Dialer;
use ambit_proxy::sync::{Follower, MeshChange};
use ambit_proxy::workload::HostWorkload;

/// Gives the waypoint the identity that it has in the mesh.
pub(crate) struct Identity {
    pub(crate) certificates: Certificates,
    pub(crate) served: Arc<HostWorkload>,
    /// The workers' connections: those made under an earlier identity take no more tunnels.
    pub(crate) pools: Vec<Pool<Dialer<HostWorkload>>>,
}

impl Follower for Identity {
    type Scope = ();

    fn void(&self, _: &MeshChange<'_>) {}

    fn follow(&self, change: &MeshChange<'_>) {
        let workload = &self.served.workload;
        if change.touched.is_some_and(|touched| !touched.workloads.contains(&workload.uid)) {
            return;
        }
        let identity = change.after.workload(&workload.uid).map(|workload| workload.identity());
        if workload.identify(identity.as_ref(), &self.certificates) {
            for pool in &self.pools {
                pool.retire_source(&workload.uid);
            }
        }
    }

    fn recheck(&self, (): ()) {}
}
