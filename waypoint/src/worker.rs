//! A thread with a runtime of its own, and what its connections share: [`Worker`].

use std::future::pending;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ambit_hbone::Http2;
use ambit_hbone::pool::Pool;
use ambit_proxy::dial::Dialer;
use ambit_proxy::workload::HostWorkload;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::upstream::Upstreams;
use crate::waypoint::Waypoint;

/// Mirrored requests under way on one worker; further ones are not sent.
const MIRRORS: usize = 256;
/// How often unused connections are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// What the connections of one thread share, and nobody else.
#[derive(Debug)]
pub struct Worker {
    /// What all workers share.
    pub waypoint: Arc<Waypoint>,
    /// HBONE connections to peers.
    pub pool: Pool<Dialer<HostWorkload>>,
    pub(crate) upstreams: Upstreams,
    pub(crate) mirrors: Arc<Semaphore>,
}

impl Worker {
    /// Without connections yet.
    pub fn new(waypoint: Arc<Waypoint>) -> Arc<Self> {
        let dialer = Dialer { workloads: waypoint.workloads.clone(), http2: Http2::default() };
        let pool = Pool::new(dialer, waypoint.proxy.timeouts.endpoint());
        let mirrors = Arc::new(Semaphore::new(MIRRORS));
        Arc::new(Self { waypoint, pool, upstreams: Upstreams::default(), mirrors })
    }
}

/// A worker's thread.
#[derive(Clone, Debug)]
pub struct Thread {
    /// What its connections share.
    pub worker: Arc<Worker>,
    /// Where they run.
    pub handle: Handle,
}

impl Thread {
    /// Starts a thread that lives as long as the process.
    pub fn start(number: usize, waypoint: Arc<Waypoint>) -> Result<Self, Error> {
        let failed = |source| Error::System { operation: "start a worker", source };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let worker = Worker::new(waypoint);
        let thread = Self { worker: worker.clone(), handle: runtime.handle().clone() };
        let run = move || {
            runtime.block_on(async {
                tokio::spawn(sweep(worker));
                pending::<()>().await;
            });
        };
        thread::Builder::new().name(format!("worker-{number}")).spawn(run).map_err(failed)?;
        Ok(thread)
    }
}

/// Closes connections that are not used; does not return.
async fn sweep(worker: Arc<Worker>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        worker.upstreams.sweep();
    }
}
