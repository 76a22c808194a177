//! What clients of the controller see, whatever the objects come from: the listening sockets, the metrics,
//! and the published state that servers read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambit_daemon_kit::admin::{Admin, Readiness, Router, Server as HttpServer, logging_routes};
use ambit_daemon_kit::drain::Drain;
use ambit_daemon_kit::telemetry::logs;
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_xds::Authenticate;
use ambit_xds::server::{Publisher, Server};
use anyhow::Context;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::ca::Authorities;
use crate::config::Config;
use crate::issue::{Hosted, Signer};
use crate::serving::Certificate;
use crate::shared::Shared;
use crate::{admin, telemetry};

/// Listening sockets, metrics and published state.
pub(crate) struct Frontend {
    listener: Mutex<Option<TcpListener>>,
    admin: Admin,
    pub(crate) metrics: Metrics,
    pub(crate) publisher: Publisher,
    pub(crate) shared: Arc<Shared>,
    pub(crate) readiness: Readiness,
}

/// Where the controller listens.
#[derive(serde::Serialize)]
pub(crate) struct Addresses {
    pub(crate) xds: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Frontend {
    /// Opens the sockets and serves the admin interface; xDS is not served yet.
    pub(crate) async fn open(config: &Config, logs: &logs::Control) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("failed to listen for xDS on {}", config.listen))?;
        let publisher = Publisher::new();
        let shared = Arc::new(Shared::default());
        let readiness = Readiness::new();
        let metrics = Metrics::new("controller");
        metrics.collect_runtime();
        telemetry::show(&metrics, &shared, &publisher);
        let mut servers = vec![
            HttpServer {
                name: "admin",
                address: config.admin,
                router: admin::routes(&shared, &publisher).merge(logging_routes(logs)),
            },
            HttpServer { name: "metrics", address: config.metrics, router: Router::new().metrics(&metrics) },
        ];
        if let Some(address) = config.readiness {
            servers.push(HttpServer { name: "readiness", address, router: readiness.routes() });
        }
        let admin = Admin::start(servers)?;
        Ok(Self { listener: Mutex::new(Some(listener)), admin, metrics, publisher, shared, readiness })
    }

    /// Serves xDS and certificates until the drain begins. To be called once.
    pub(crate) async fn serve(
        &self,
        config: &Config,
        authorities: Authorities,
        hosted: Hosted,
        authenticate: Arc<dyn Authenticate>,
        drain: &Drain,
    ) -> anyhow::Result<()> {
        let certificate = Certificate::new(authorities.clone(), &config.server_name)?;
        telemetry::show_expiry(&self.metrics, authorities.clone(), certificate.clone());
        let tls = certificate.server_config()?;
        let signer = Signer { authorities, shared: self.shared.clone(), hosted };
        let server = Server {
            publisher: self.publisher.clone(),
            authenticate,
            signer: Arc::new(signer),
            max_age: config.max_connection_age,
        };
        let listener =
            self.listener.lock().take().context("failed to take the xDS listener: it is served already")?;
        let started = {
            let drain = drain.clone();
            async move { drain.started().await }
        };
        tokio::select! {
            result = server.serve(listener, tls, started) => result.context("failed to serve xDS"),
            () = certificate.keep() => Ok(()),
        }
    }

    /// Where it listens, before xDS is served.
    pub(crate) fn addresses(&self) -> anyhow::Result<Addresses> {
        let listener = self.listener.lock();
        let xds = listener
            .as_ref()
            .context("failed to read the xDS address: it is served already")?
            .local_addr()?;
        let addresses = self.admin.addresses();
        Ok(Addresses { xds, admin: addresses[0], metrics: addresses[1] })
    }

    /// Ends the admin interface; open requests may take this long.
    pub(crate) async fn stop(self, deadline: Duration) {
        self.admin.stop(deadline).await;
    }
}
