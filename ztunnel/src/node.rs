//! The parts of the daemon: [`Node`]. Only what puts them together takes all of it.

use std::sync::Arc;

use ambit_certificates::Certificates;
use ambit_core::model::WorkloadUid;
use ambit_hbone::pool::Pool;
use ambit_loader::Dataplane;
use ambit_proxy::dial::Dialer;
use ambit_proxy::identity::Identities;
use ambit_proxy::proxy::{Proxy, Timeouts};

use crate::capture::{Capture, OpenMode};
use crate::config::Config;
use crate::direct::{Direct, Rechecks};
use crate::error::Error;
use crate::links::Links;
use crate::pods::{Pod, Pods};

/// What the daemon consists of.
pub(crate) struct Node {
    pub(crate) config: Config,
    /// What a proxy without pods and eBPF has too.
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) pool: Pool<Dialer<Pod>>,
    pub(crate) identities: Identities<Pod>,
    pub(crate) pods: Arc<Pods>,
    pub(crate) dataplane: Arc<Dataplane>,
    pub(crate) capture: Capture,
    pub(crate) direct: Arc<Direct>,
    pub(crate) links: Arc<Links>,
}

impl Node {
    pub(crate) fn new(
        config: Config,
        dataplane: Dataplane,
        certificates: Certificates,
        closing: bool,
    ) -> Result<(Self, Rechecks), Error> {
        let timeouts = Timeouts { connect: config.connect_timeout() };
        let proxy = Arc::new(Proxy::new(timeouts, config.ejection()));
        let (dataplane, pods) = (Arc::new(dataplane), Arc::new(Pods::default()));
        let dialer = Dialer { workloads: pods.clone(), http2: ambit_hbone::Http2::default() };
        let links = Links::new(dataplane.clone(), config.direct.trusted_links, config.host_network);
        let links = Arc::new(links);
        let enabled = config.direct.enabled && closing;
        let (direct, rechecks) =
            Direct::new(&config, enabled, dataplane.clone(), pods.clone(), proxy.clone(), links.clone())?;
        let open = closing.then(|| {
            if config.open_without_daemon { OpenMode::ForEver } else { OpenMode::For(config.direct.lease()) }
        });
        let pool = Pool::new(dialer, timeouts.endpoint());
        let node = Self {
            identities: Identities { certificates, workloads: pods.clone(), pool: pool.clone() },
            pool,
            capture: Capture::new(dataplane.clone(), open),
            direct: Arc::new(direct),
            links,
            config,
            proxy,
            pods,
            dataplane,
        };
        Ok((node, rechecks))
    }

    /// Renews what the kernel may do by itself, as far as this daemon can follow changes there.
    pub(crate) fn renew_leases(&self) {
        self.direct.renew();
        if self.direct.follows() {
            self.capture.renew();
        }
    }

    /// A pod is released from the kernel: nothing new for it. Open connections go on until they end.
    pub(crate) fn released(&self, uid: &str) {
        let uid = WorkloadUid(uid.into());
        if let Some(pod) = self.pods.remove(&uid) {
            pod.workload.released.cancel();
        }
        self.direct.released(&uid);
        self.links.released(&uid);
        self.pool.retire_source(&uid);
    }
}
