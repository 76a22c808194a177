//! A connection of one of this node's applications, captured in `connect()`: [`serve`].
//!
//! accept → original destination → `Connection` → `outbound::plan` → tunnel or dial → relay → report.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::Reason;
use ambit_core::balance::Avoid;
use ambit_core::mesh::Mesh;
use ambit_core::model::Workload;
use ambit_core::outbound::{Connection, Plaintext, Plan, Tunnel, another, plan_without, resolved};
use ambit_core::outlier::ServicePortKey;
use ambit_daemon_kit::telemetry::connection::{Direction, End, Ending, Facts, Path, failed};
use ambit_loader::Captured;
use tokio::net::TcpStream;
use tokio::time::{error::Elapsed, timeout};

use crate::config::ENDPOINTS;
use crate::connections::Registered;
use crate::daemon::Node;
use crate::dial::{self, Failure};
use crate::endpoints::Endpoint;
use crate::pods::Pod;
use crate::relay::{self, Far};
use crate::shares::Held;
use crate::{health, report, socket};

/// Carries one connection from its acceptance to its report.
pub(crate) async fn serve(
    node: Arc<Node>,
    pod: Arc<Pod>,
    stream: TcpStream,
    client: SocketAddr,
    mut held: Held,
) {
    // Boxed, so that an open connection does not keep the memory that making it took.
    let made = Box::pin(open(&node, &pod, &stream, client)).await;
    drop(pod);
    if matches!(made, Some((_, Far::Tunnel(_)))) {
        // The other end is a part of a connection that many share.
        held.keep(1);
    }
    match made {
        Some((registered, far)) => relay::run(&node, registered, stream, far).await,
        None => socket::reset(stream),
    }
}

/// Reports a connection that was refused because its pod has as many as it may.
pub(crate) fn exhausted(pod: &Arc<Pod>, client: SocketAddr) {
    let attempt = Attempt::new(pod, client);
    failed(&attempt.facts, attempt.since, &report::exhausted(&pod.uid));
}

/// Decides about a connection and makes its other half; none if that is not to be, which is reported then.
async fn open(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    stream: &TcpStream,
    client: SocketAddr,
) -> Option<(Registered, Far)> {
    let mut attempt = Attempt::new(pod, client);
    let made = timeout(node.config.connect_timeout(), attempt.make(node, stream)).await;
    match made.unwrap_or_else(|_: Elapsed| Err(attempt.too_late(node))) {
        Ok(far) => Some((node.connections.open(attempt.facts, None), far)),
        Err(ending) => {
            failed(&attempt.facts, attempt.since, &ending);
            None
        }
    }
}

/// A connection that is being made, and what is known of it so far.
struct Attempt<'a> {
    pod: &'a Arc<Pod>,
    client: SocketAddr,
    since: Instant,
    facts: Facts,
    /// The endpoint that is being tried, and the mesh it was taken from.
    trying: Option<(Arc<Mesh>, Endpoint)>,
}

impl<'a> Attempt<'a> {
    fn new(pod: &'a Arc<Pod>, client: SocketAddr) -> Self {
        let end = |address| End { address, workload: None, identity: None };
        let facts = Facts {
            direction: Direction::Outbound,
            path: Path::Plaintext,
            mutual_tls: false,
            source: end(client),
            // Not known yet; an unmapped address stands for "nowhere".
            destination: end(SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0)),
            hbone_address: None,
            service: None,
        };
        Self { pod, client, since: Instant::now(), facts, trying: None }
    }

    async fn make(&mut self, node: &Arc<Node>, stream: &TcpStream) -> Result<Far, Ending> {
        let Captured { asked: destination, chosen } = captured(node, stream)?;
        self.facts.destination.address = destination;
        let Some(mesh) = node.state.wait(&self.pod.uid).await else {
            let error = "no configuration from the controller yet";
            return Err(report::unmade(Reason::NotSynchronized, error));
        };
        let source = mesh.workload(&self.pod.uid).cloned();
        self.client = client_of(source.as_deref(), self.client, destination);
        self.facts.source.address = self.client;
        self.facts.source.workload = source;
        let flow = Connection { source: self.pod.uid.clone(), destination, chosen };
        self.try_endpoints(node, &mesh, &flow).await
    }

    /// Tries one endpoint after the other while it is the endpoint that fails, and the service has more.
    async fn try_endpoints(
        &mut self,
        node: &Arc<Node>,
        mesh: &Arc<Mesh>,
        flow: &Connection,
    ) -> Result<Far, Ending> {
        let ejected = node.endpoints.ejected();
        let avoid = Avoid { ejected: &ejected, tried: &[] };
        let mut plan =
            plan_without(mesh, flow, &avoid, rand::random()).map_err(|denial| report::denied(&denial))?;
        let mut tried = Vec::new();
        loop {
            self.describe(&plan);
            tried.extend(plan.destination().map(|workload| workload.uid.clone()));
            let next = if tried.len() < ENDPOINTS as usize {
                another(mesh, flow, &Avoid { tried: &tried, ..avoid }, rand::random())
            } else {
                None
            };
            let since = Instant::now();
            self.trying = endpoint(&plan, flow).map(|endpoint| (mesh.clone(), endpoint));
            // The last one has all the time that is left.
            let limit = next.as_ref().map(|_| node.config.endpoint_timeout());
            let followed = self.follow_within(node, mesh, &plan, limit).await;
            self.tell(node, &followed);
            match (followed, next) {
                (Ok(far), _) => {
                    if let Plan::Tunnel(tunnel) = &plan {
                        node.direct.remember(node, self.pod, tunnel, flow.destination);
                    }
                    health::CONNECT.observe(self.facts.path.as_str(), since.elapsed());
                    return Ok(far);
                }
                (Err(Failure { elsewhere: true, .. }), Some(next)) => plan = next,
                (Err(failure), _) => return Err(failure.ending),
            }
        }
    }

    /// Tells how the endpoint did. A refusal for other reasons than the endpoint's own says nothing of it.
    fn tell(&mut self, node: &Node, followed: &Result<Far, Failure>) {
        let Some((mesh, endpoint)) = self.trying.take() else { return };
        match followed {
            Ok(_) => node.endpoints.succeeded(&endpoint),
            Err(Failure { elsewhere: true, .. }) => node.endpoints.failed(&mesh, &endpoint),
            Err(Failure { elsewhere: false, .. }) => {}
        }
    }

    async fn follow_within(
        &mut self,
        node: &Arc<Node>,
        mesh: &Mesh,
        plan: &Plan,
        limit: Option<Duration>,
    ) -> Result<Far, Failure> {
        let Some(limit) = limit else { return self.follow(node, mesh, plan).await };
        match timeout(limit, self.follow(node, mesh, plan)).await {
            Ok(followed) => followed,
            Err(_) => Err(dial::too_slow(self.facts.destination.address, limit)),
        }
    }

    async fn follow(&mut self, node: &Arc<Node>, mesh: &Mesh, plan: &Plan) -> Result<Far, Failure> {
        match plan {
            Plan::Tunnel(tunnel) => {
                let far = dial::tunnel(node, self.pod, tunnel, self.client).await?;
                self.facts.source.identity = Some(tunnel.source.identity());
                // Where several would have done, which one it was is not known here.
                self.facts.destination.identity = match &tunnel.identities[..] {
                    [only] => Some(only.clone()),
                    _ => None,
                };
                Ok(Far::Tunnel(far))
            }
            Plan::Local(direct) => {
                // The application talks to itself, and sees itself as the peer.
                dial::application(node, self.pod, direct.address, self.client).await.map(Far::Plain)
            }
            Plan::Passthrough(named @ Plaintext { hostname: Some(name), .. }) => {
                self.follow_name(node, mesh, named, name).await
            }
            Plan::Passthrough(direct) => dial::plain(node, self.pod, direct.address).await.map(Far::Plain),
        }
    }

    /// Goes on with the addresses that an endpoint's name has now, one after the other.
    async fn follow_name(
        &mut self,
        node: &Arc<Node>,
        mesh: &Mesh,
        named: &Plaintext,
        name: &str,
    ) -> Result<Far, Failure> {
        let mut last = None;
        for address in dial::resolve(name, named.address).await? {
            let Some(plan) = resolved(mesh, named, address) else { continue };
            self.describe(&plan);
            match Box::pin(self.follow(node, mesh, &plan)).await {
                Err(failure @ Failure { elsewhere: true, .. }) => last = Some(failure),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| dial::unresolved(name, "no address that a peer can have")))
    }

    fn describe(&mut self, plan: &Plan) {
        let facts = &mut self.facts;
        match plan {
            Plan::Tunnel(Tunnel { destination, service, peer, authority, .. }) => {
                facts.path = Path::Tunnel;
                facts.mutual_tls = true;
                facts.destination.address = *peer;
                facts.destination.workload = Some(destination.clone());
                facts.hbone_address = Some(*authority);
                facts.service.clone_from(service);
            }
            Plan::Local(Plaintext { destination, service, address, .. })
            | Plan::Passthrough(Plaintext { destination, service, address, .. }) => {
                facts.path = Path::Plaintext;
                facts.mutual_tls = false;
                facts.destination.address = *address;
                facts.destination.workload.clone_from(destination);
                facts.hbone_address = None;
                facts.service.clone_from(service);
            }
        }
    }

    fn too_late(&mut self, node: &Node) -> Ending {
        if let Some((mesh, endpoint)) = self.trying.take() {
            node.endpoints.failed(&mesh, &endpoint);
        }
        let error = format!("not connected within {:?}", node.config.connect_timeout());
        report::unmade(Reason::ConnectTimeout, error)
    }
}

fn captured(node: &Node, stream: &TcpStream) -> Result<Captured, Ending> {
    let missing = |error| report::unmade(Reason::OriginalDestinationMissing, error);
    match node.kernel.dataplane().original_destination(stream.as_fd()) {
        Ok(Some(captured)) => Ok(captured),
        Ok(None) => Err(missing("not captured: an application dialled the daemon itself".to_owned())),
        Err(error) => Err(missing(report::chain(&error))),
    }
}

/// The client as others know it. It connected over loopback, from a port that is its alone; its peers see its
/// pod's address, of the family it asked for.
fn client_of(source: Option<&Workload>, client: SocketAddr, destination: SocketAddr) -> SocketAddr {
    let addresses = || source.into_iter().flat_map(|source| &source.addresses);
    let same = addresses().find(|address| address.is_ipv4() == destination.is_ipv4());
    let address = same.or_else(|| addresses().next()).copied().unwrap_or(client.ip());
    SocketAddr::new(address, client.port())
}

/// The endpoint as the service has it; none where no choice was made, or the pod talks to itself.
fn endpoint(plan: &Plan, flow: &Connection) -> Option<Endpoint> {
    if matches!(plan, Plan::Local(_)) {
        return None;
    }
    let port = ServicePortKey { service: plan.service()?.key.clone(), port: flow.destination.port() };
    Some(Endpoint { port, workload: plan.destination()?.uid.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::workload;

    #[test]
    fn peers_know_the_client_by_its_pods_address() {
        let dual = workload("web", &["10.0.0.1", "fd00::1"]);
        let v4 = workload("web", &["10.0.0.1"]);
        let rows = [
            ("IPv4", Some(&dual), "127.0.0.1:4000", "10.96.0.1:80", "10.0.0.1:4000"),
            ("IPv6", Some(&dual), "[::1]:4000", "[fd00::96]:80", "[fd00::1]:4000"),
            ("a family the pod has not", Some(&v4), "[::1]:4000", "[fd00::96]:80", "10.0.0.1:4000"),
            ("a pod nobody knows", None, "127.0.0.1:4000", "10.96.0.1:80", "127.0.0.1:4000"),
        ];
        for (name, source, client, destination, expected) in rows {
            let seen = client_of(source, client.parse().unwrap(), destination.parse().unwrap());
            assert_eq!(seen, expected.parse().unwrap(), "{name}");
        }
    }
}
