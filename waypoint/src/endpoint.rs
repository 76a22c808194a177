//! Where a request or connection goes: a [`Backend`], and one of its endpoints after the other
//! ([`Choosing`]).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ambit_core::Denial;
use ambit_core::balance::Avoid;
use ambit_core::fronted::Fronted;
use ambit_core::mesh::Mesh;
use ambit_core::model::{Affinity, AppProtocol, Service, ServiceKey, WorkloadUid};
use ambit_core::outbound::{self, Connection, Forward, Plan};
use ambit_core::outlier::ServicePortKey;
use ambit_proxy::dial;
use ambit_proxy::endpoints::Endpoint;
use ambit_proxy::proxy::MAX_ATTEMPTS;
use http::Version;
use tokio::time::error::Elapsed;

use crate::downstream::Downstream;
use crate::failure::Failure;
use crate::upstream;
use crate::worker::Worker;

/// What a rule has chosen.
#[derive(Clone, Debug)]
pub(crate) enum Backend {
    /// A port of a service.
    Service {
        service: Arc<Service>,
        port: u16,
        /// The dialled address, where this is what was dialled.
        dialled: Option<IpAddr>,
    },
    /// The workload that was dialled.
    Workload { address: SocketAddr },
}

impl Backend {
    /// What the client dialled.
    pub(crate) fn dialled(downstream: &Downstream) -> Self {
        match &downstream.fronted {
            Fronted::Service { service, port } => Self::Service {
                service: service.clone(),
                port: *port,
                dialled: Some(downstream.dialled.ip()),
            },
            Fronted::Workload { address, .. } => Self::Workload { address: *address },
        }
    }

    /// A backend that a route names.
    pub(crate) fn service(
        mesh: &Mesh,
        downstream: &Downstream,
        key: &ServiceKey,
        port: u16,
    ) -> Result<Self, Failure> {
        let Some(service) = mesh.service(key).filter(|service| service.port(port).is_some()) else {
            return Err(Failure::InvalidBackend(format!("service {key} has no port {port}").into()));
        };
        let own = downstream.service().is_some_and(|it| it.key == *key);
        let dialled = (own && port == downstream.dialled.port()).then(|| downstream.dialled.ip());
        Ok(Self::Service { service: service.clone(), port, dialled })
    }

    /// The service and port, if it is one.
    pub(crate) fn key(&self) -> Option<ServicePortKey> {
        match self {
            Self::Service { service, port, .. } => {
                Some(ServicePortKey { service: service.key.clone(), port: *port })
            }
            Self::Workload { .. } => None,
        }
    }

    /// The service, if it is one.
    pub(crate) fn as_service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::Workload { .. } => None,
        }
    }

    /// Whether its endpoints are sent HTTP/2: as the port declares, else as the client does.
    pub(crate) fn is_http2(&self, client: Version) -> bool {
        let declared = match self {
            Self::Service { service, port, .. } => service.port(*port).map(|port| port.app_protocol),
            Self::Workload { .. } => None,
        };
        match declared.unwrap_or_default() {
            AppProtocol::Http2 | AppProtocol::Grpc => true,
            AppProtocol::Http11 => false,
            AppProtocol::Unknown | AppProtocol::Tcp | AppProtocol::Tls => client == Version::HTTP_2,
        }
    }
}

/// Endpoints of a backend, one after the other while they cannot be reached.
pub(crate) struct Choosing<'a> {
    worker: &'a Worker,
    /// As it was when the request came; after an endpoint that failed, the newest, since in a rollout those
    /// that were known before may all be gone.
    mesh: Arc<Mesh>,
    backend: &'a Backend,
    /// Those that could not be reached.
    tried: Vec<WorkloadUid>,
    last: Option<Failure>,
}

impl<'a> Choosing<'a> {
    pub(crate) fn new(worker: &'a Worker, mesh: &Arc<Mesh>, backend: &'a Backend) -> Self {
        Self { worker, mesh: mesh.clone(), backend, tried: Vec::new(), last: None }
    }

    /// How long one endpoint may take to be reached.
    pub(crate) fn limit(&self) -> Duration {
        self.worker.waypoint.proxy.timeouts.endpoint()
    }

    /// The next one. Those in `avoided` only where there is no other.
    pub(crate) fn next(&mut self, avoided: &[WorkloadUid]) -> Result<Plan, Failure> {
        if self.tried.len() >= MAX_ATTEMPTS as usize
            && let Some(last) = self.last.take()
        {
            return Err(last);
        }
        let mut avoid = self.tried.clone();
        avoid.extend_from_slice(avoided);
        let chosen = self.choose(&avoid);
        let chosen = if chosen.is_err() && !avoided.is_empty() { self.choose(&self.tried) } else { chosen };
        chosen.map_err(|denial| self.last.take().unwrap_or(Failure::NoEndpoint(denial)))
    }

    /// What came of trying an endpoint. `Ok(None)`: try the next one.
    pub(crate) fn outcome<T>(
        &mut self,
        plan: &Plan,
        made: Result<Result<T, dial::Failure>, Elapsed>,
    ) -> Result<Option<T>, Failure> {
        let endpoints = &self.worker.waypoint.proxy.endpoints;
        let endpoint = self.endpoint(plan);
        let failure = match made {
            Ok(Ok(made)) => {
                if let Some(endpoint) = &endpoint {
                    endpoints.succeeded(endpoint);
                }
                return Ok(Some(made));
            }
            Ok(Err(failure)) => failure,
            Err(_) => {
                let limit = self.limit();
                dial::too_slow(upstream::address(plan), limit)
            }
        };
        let error = failure.ending.error.unwrap_or_else(|| failure.ending.reason.to_string());
        let error = Failure::Connect(error);
        if !failure.elsewhere {
            return Err(error);
        }
        match endpoint {
            Some(endpoint) => {
                endpoints.failed(&self.mesh, &endpoint);
                self.mesh = self.worker.waypoint.proxy.mesh.mesh().unwrap_or_else(|| self.mesh.clone());
                self.tried.push(endpoint.workload);
                self.last = Some(error);
                Ok(None)
            }
            // There is no other.
            None => Err(error),
        }
    }

    /// The less loaded of two that are chosen at random: requests differ too much in what they cost for turns
    /// to be fair (power of two choices).
    fn choose(&self, tried: &[WorkloadUid]) -> Result<Plan, Denial> {
        let one = self.plan(tried)?;
        let Some(service) = self.backend.as_service() else { return Ok(one) };
        let several = self.mesh.endpoints(&service.key).nth(1).is_some();
        if !several || service.load_balancing.affinity == Affinity::ClientIp {
            return Ok(one);
        }
        let other = self.plan(tried)?;
        let load =
            |plan: &Plan| plan.destination().map_or(0, |workload| self.worker.upstreams.load(&workload.uid));
        Ok(if load(&other) < load(&one) { other } else { one })
    }

    fn plan(&self, tried: &[WorkloadUid]) -> Result<Plan, Denial> {
        let proxy = &self.worker.waypoint.proxy;
        let ejected = proxy.endpoints.ejected();
        let avoid = Avoid { ejected: &ejected, tried };
        let source = self.worker.waypoint.served.workload.uid.clone();
        match self.backend {
            Backend::Service { service, port, dialled } => {
                let what = Forward { source, service: service.key.clone(), port: *port, dialled: *dialled };
                outbound::forward(&self.mesh, &what, &avoid, rand::random())
            }
            Backend::Workload { address } => {
                let connection = Connection { source, destination: *address, chosen: None };
                outbound::plan(&self.mesh, &connection, &avoid, rand::random())
            }
        }
    }

    fn endpoint(&self, plan: &Plan) -> Option<Endpoint> {
        Some(Endpoint { port: self.backend.key()?, workload: plan.destination()?.uid.clone() })
    }
}
