//! The waypoint put together: [`run`] starts everything, waits for a signal to end, and drains.

use std::sync::Arc;
use std::time::Duration;

use ambit_certificates::{self as certificates, Certificates};
use ambit_core::model::WorkloadUid;
use ambit_core::{chain, outlier};
use ambit_daemon_kit::admin::{Admin, Condition, Readiness};
use ambit_daemon_kit::bootstrap::Bootstrap;
use ambit_daemon_kit::controller::Controller;
use ambit_daemon_kit::signals::Shutdown;
use ambit_daemon_kit::telemetry::{logs, metrics::Metrics};
use ambit_proxy::controller::{CaSigner, ControllerCredentials};
use ambit_proxy::proxy::{Proxy, Timeouts};
use ambit_proxy::report::forget_series_after;
use ambit_proxy::sync::MeshSync;
use ambit_proxy::tasks;
use ambit_proxy::workload::{HostWorkload, LocalWorkload};
use ambit_xds::client::{Interest, Status};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::accept;
use crate::admin::{self, Shown};
use crate::config::Config;
use crate::error::Error;
use crate::follower;
use crate::metrics;
use crate::waypoint::{Limits, Waypoint};
use crate::worker::Thread;

/// How long the last requests to the admin servers may take at the very end.
const ADMIN_END: Duration = Duration::from_secs(1);
/// How often the metrics of open connections are updated.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks whether there is a certificate.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(1);
/// The same while there is none.
const CERTIFICATE_RETRY: Duration = Duration::from_millis(100);
/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// Runs the waypoint until a termination signal.
pub async fn run(config: Config) -> Result<(), Error> {
    let shutdown = Shutdown::install()?;
    let (log, flush) = logs::install(&config.log)?;
    let exposed = Metrics::new("waypoint");
    exposed.collect_runtime();
    forget_series_after(config.metrics_idle());
    let readiness = Readiness::new();
    let (listening, synced) = (readiness.condition("listener"), readiness.condition("xds"));
    let certified = readiness.condition("certificate");
    raise_descriptor_limit();

    let (controller, node) = controller(&config)?;
    let credentials = ControllerCredentials { controller: controller.clone(), node };
    let settings = certificates::Settings { ttl: config.certificate_ttl(), roots: controller.roots()? };
    let certificates = Certificates::new(CaSigner::new(credentials.clone())?, &settings)?;

    let waypoint = Arc::new(waypoint(&config));
    let threads = (0..config.workers())
        .map(|number| Thread::start(number, waypoint.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    let listener = listen(&config)?;
    listening.met();
    let (xds_status, xds) = watch::channel(Status::default());
    metrics::show(&threads, xds.clone(), &exposed);
    let shown = Shown {
        waypoint: &waypoint,
        certificates: &certificates,
        log: &log,
        metrics: &exposed,
        readiness: &readiness,
        xds: xds.clone(),
    };
    let admin = admin::start(&config, shown)?;
    for thread in &threads {
        tokio::spawn(tasks::follow_certificates(&certificates, thread.worker.pool.clone()));
    }
    tokio::spawn(tasks::follow_roots(controller, certificates.clone()));
    tokio::spawn(follow_time(waypoint.clone()));
    tokio::spawn(follow_certificate(waypoint.clone(), certified));
    tokio::spawn(tasks::follow_status(xds, synced));
    let pools = threads.iter().map(|thread| thread.worker.pool.clone()).collect();
    let follower = follower::Identity { certificates, served: waypoint.served.clone(), pools };
    let sync = MeshSync::new(waypoint.proxy.mesh.clone(), waypoint.proxy.connections.clone(), follower);
    let interest = config.service().map_or_else(Interest::default, Interest::Waypoint);
    tokio::spawn(tasks::follow_controller_for(interest, credentials, xds_status, sync));
    let accepting = tokio::spawn(accept::accept(listener, threads.clone()));
    tracing::info!(workload = config.workload, "waypoint started");

    shutdown.drain(&waypoint.proxy.drain).await;
    listening.unmet("draining");
    // What has connected by now is served; the listener is gone when this returns.
    let _ended = accepting.await;
    finish(&config, &waypoint, &threads, admin).await;
    drop(flush);
    Ok(())
}

/// The shared parts, as configured.
fn waypoint(config: &Config) -> Waypoint {
    let timeouts = Timeouts { connect: config.connect_timeout() };
    let proxy = Arc::new(Proxy::new(timeouts, Some(outlier::Settings::default())));
    let workload = LocalWorkload::new(WorkloadUid(config.workload.as_str().into()));
    let served = HostWorkload { workload, address: config.address };
    // Idle connections get half of the time to send a last request.
    let limits = Limits { drain_grace: config.drain_timeout() / 2, ..Limits::default() };
    Waypoint::new(proxy, served, limits)
}

/// Lets requests under way end, then cuts them.
async fn finish(config: &Config, waypoint: &Waypoint, threads: &[Thread], admin: Admin) {
    if let Err(error) = waypoint.proxy.drain.finish(config.drain_timeout()).await {
        tracing::warn!(error = chain(&error), "connections cut at the drain deadline");
    }
    for thread in threads {
        thread.worker.pool.retire_all();
    }
    admin.stop(ADMIN_END).await;
    tracing::info!("waypoint stopped");
}

/// The controller, as the configuration says it is reached, and the node that asks.
fn controller(config: &Config) -> Result<(Controller, String), Error> {
    match (&config.bootstrap, &config.controller) {
        (Some(path), _) => {
            let bootstrap = Bootstrap::read(path)?;
            let node = bootstrap.node.clone();
            Ok((bootstrap.into(), node))
        }
        (None, Some(settings)) => Ok((settings.clone().into(), config.node.clone())),
        (None, None) => Err(Error::NoController),
    }
}

/// Both families where the address is the unspecified one of IPv6.
fn listen(config: &Config) -> Result<TcpListener, Error> {
    let address = config.listen;
    let bound = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    bound().map_err(|source| Error::Listen { address, source })
}

/// Each connection takes a descriptor, so the soft limit would be reached first.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "limit of descriptors raised"),
        Err(error) => tracing::warn!(%error, "failed to raise the limit of descriptors"),
    }
}

/// Without a certificate no client can be served.
async fn follow_certificate(waypoint: Arc<Waypoint>, certified: Condition) {
    loop {
        let pause = match waypoint.served.workload.certificate().await {
            Ok(_) => {
                certified.met();
                CERTIFICATE_LOOK
            }
            Err(error) => {
                certified.unmet(error);
                CERTIFICATE_RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// What is done as time goes by: ejections end, and metrics of open connections are updated.
async fn follow_time(waypoint: Arc<Waypoint>) {
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        waypoint.proxy.connections.progress();
        waypoint.proxy.endpoints.advance();
    }
}
