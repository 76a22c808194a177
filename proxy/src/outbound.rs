//! A connection of a served workload's application: [`serve`].
//!
//! what the application asked for → `Connection` → `outbound::plan` → tunnel or dial → relay →
//! report. Where it goes is decided by `ambit_core::outbound`; here the decision is carried out, with other
//! endpoints if one fails. Accepting the connection, and knowing what it asked for, is the caller's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::Reason;
use ambit_core::balance::Avoid;
use ambit_core::mesh::Mesh;
use ambit_core::model::{Workload, WorkloadUid};
use ambit_core::outbound::{
    Connection, Plaintext, Plan, Tunnel, WaypointTunnel, another, outside, plan, resolved,
};
use ambit_hbone::pool::Pool;
use tokio::net::TcpStream;
use tokio::time::{error::Elapsed, timeout};

use crate::connections::Registered;
use crate::dial::{self, Dialer, Failure};
use crate::endpoints::Endpoint;
use crate::metrics::CONNECT;
use crate::proxy::{MAX_ATTEMPTS, Proxy};
use crate::relay::{self, Remote};
use crate::report::{ConnectionInfo, Direction, Ending, Party, Path, ending, failed};
use crate::shares::Held;
use crate::socket;
use crate::workload::{LocalWorkload, Served};

/// What an application asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The original destination.
    pub destination: SocketAddr,
    /// The endpoint that the kernel chose among the service's, where it chose.
    pub chosen: Option<SocketAddr>,
    /// Everything is captured for now, also what is not in the mesh.
    pub captures_all: bool,
}

/// A connection that was accepted.
#[derive(Debug)]
pub struct Accepted {
    /// Its socket.
    pub stream: TcpStream,
    /// The address of its client.
    pub client: SocketAddr,
    /// What it asked for, or why that is not known.
    pub asked: Result<Asked, Ending>,
    /// Descriptors that it holds: two, of which a tunnel gives one back.
    pub held: Option<Held>,
}

/// Carries one connection from its acceptance to its report. `opened` gets the tunnel that was opened for
/// which destination.
pub async fn serve<W: Served>(
    proxy: Arc<Proxy>,
    pool: Pool<Dialer<W>>,
    served: Arc<W>,
    accepted: Accepted,
    opened: impl Fn(&W, &Tunnel, SocketAddr) + Send + Sync,
) {
    let Accepted { stream, client, asked, mut held } = accepted;
    // Boxed, so that an open connection does not keep the memory that making it took.
    let made = Box::pin(open(&proxy, &pool, &*served, asked, client, &opened)).await;
    drop((served, pool));
    if let (Some((_, Remote::Tunnel(_))), Some(held)) = (&made, &mut held) {
        // The tunnel is a stream of an HBONE connection that many share.
        held.keep(1);
    }
    match made {
        Some((registered, remote)) => relay::run(&proxy.drain, registered, stream, remote).await,
        None => socket::reset(stream),
    }
}

/// Reports a connection that was refused because its workload holds its share of descriptors.
pub fn exhausted(workload: &LocalWorkload, client: SocketAddr) {
    failed(&info(client), Instant::now(), &ending::exhausted(&workload.uid));
}

/// Decides about a connection and makes its other half; none if that failed, which is reported then.
async fn open<W: Served>(
    proxy: &Proxy,
    pool: &Pool<Dialer<W>>,
    served: &W,
    asked: Result<Asked, Ending>,
    client: SocketAddr,
    opened: &(impl Fn(&W, &Tunnel, SocketAddr) + Sync),
) -> Option<(Registered, Remote)> {
    let mut attempt =
        Attempt { proxy, pool, served, client, since: Instant::now(), info: info(client), trying: None };
    let made = timeout(proxy.timeouts.connect, attempt.make(asked, opened)).await;
    match made.unwrap_or_else(|_: Elapsed| Err(attempt.too_late())) {
        Ok(remote) => Some((proxy.connections.open(attempt.info, None), remote)),
        Err(ending) => {
            failed(&attempt.info, attempt.since, &ending);
            None
        }
    }
}

/// What is known before anything is decided.
fn info(client: SocketAddr) -> ConnectionInfo {
    ConnectionInfo {
        direction: Direction::Outbound,
        path: Path::Plaintext,
        mutual_tls: false,
        source: Party::at(client),
        // Not known yet.
        destination: Party::at(SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0)),
        hbone_address: None,
        client: None,
        service: None,
    }
}

/// A connection that is being made, and what is known of it so far.
struct Attempt<'a, W: Served> {
    proxy: &'a Proxy,
    pool: &'a Pool<Dialer<W>>,
    served: &'a W,
    client: SocketAddr,
    since: Instant,
    info: ConnectionInfo,
    /// The endpoint that is being tried, and the mesh it was taken from.
    trying: Option<(Arc<Mesh>, Endpoint)>,
}

impl<W: Served> Attempt<'_, W> {
    async fn make(
        &mut self,
        asked: Result<Asked, Ending>,
        opened: &(impl Fn(&W, &Tunnel, SocketAddr) + Sync),
    ) -> Result<Remote, Ending> {
        let Asked { destination, chosen, captures_all } = asked?;
        self.info.destination.address = destination;
        let uid = &self.served.workload().uid;
        let Some(mesh) = self.proxy.mesh.wait(uid).await else {
            let error = "no configuration from the controller yet";
            return Err(ending::unmade(Reason::NotSynchronized, error));
        };
        let source = mesh.workload(uid).cloned();
        self.client = client_of(source.as_deref(), self.client, destination);
        self.info.source.address = self.client;
        self.info.source.workload = source;
        let connection = Connection { source: uid.clone(), destination, chosen };
        if captures_all && let Some(plan) = outside(&mesh, &connection) {
            self.describe(&plan);
            return self.follow(&mesh, &plan).await.map_err(|failure| failure.ending);
        }
        self.try_endpoints(mesh, &connection, opened).await
    }

    /// Tries one endpoint after the other while it is the endpoint that fails, and the service has more. Each
    /// is chosen from the mesh as it is then: in a rollout those that were known at first may all be gone.
    async fn try_endpoints(
        &mut self,
        mut mesh: Arc<Mesh>,
        connection: &Connection,
        opened: &(impl Fn(&W, &Tunnel, SocketAddr) + Sync),
    ) -> Result<Remote, Ending> {
        let ejected = self.proxy.endpoints.ejected();
        let avoid = Avoid { ejected: &ejected, tried: &[] };
        let mut plan =
            plan(&mesh, connection, &avoid, rand::random()).map_err(|denial| ending::denied(&denial))?;
        let mut tried = Vec::new();
        let more = |mesh: &Mesh, tried: &[WorkloadUid]| {
            let left = tried.len() < MAX_ATTEMPTS as usize;
            left.then(|| another(mesh, connection, &Avoid { tried, ..avoid }, rand::random())).flatten()
        };
        loop {
            self.describe(&plan);
            tried.extend(plan.destination().map(|workload| workload.uid.clone()));
            let since = Instant::now();
            self.trying = endpoint(&plan, connection).map(|endpoint| (mesh.clone(), endpoint));
            // The last one has all the time that is left.
            let limit = more(&mesh, &tried).map(|_| self.proxy.timeouts.endpoint());
            let followed = self.follow_within(&mesh, &plan, limit).await;
            self.record_health(&followed);
            let failure = match followed {
                Ok(remote) => {
                    if let Plan::Tunnel(tunnel) = &plan {
                        opened(self.served, tunnel, connection.destination);
                    }
                    CONNECT.observe(self.info.path.as_str(), since.elapsed());
                    return Ok(remote);
                }
                Err(failure) => failure,
            };
            mesh = self.proxy.mesh.mesh().unwrap_or(mesh);
            match more(&mesh, &tried) {
                Some(next) if failure.elsewhere => plan = next,
                _ => return Err(failure.ending),
            }
        }
    }

    /// Records how the endpoint did. A refusal for other reasons than the endpoint's own does not count.
    fn record_health(&mut self, followed: &Result<Remote, Failure>) {
        let Some((mesh, endpoint)) = self.trying.take() else { return };
        match followed {
            Ok(_) => self.proxy.endpoints.succeeded(&endpoint),
            Err(Failure { elsewhere: true, .. }) => self.proxy.endpoints.failed(&mesh, &endpoint),
            Err(Failure { elsewhere: false, .. }) => {}
        }
    }

    async fn follow_within(
        &mut self,
        mesh: &Mesh,
        plan: &Plan,
        limit: Option<Duration>,
    ) -> Result<Remote, Failure> {
        let Some(limit) = limit else { return self.follow(mesh, plan).await };
        match timeout(limit, self.follow(mesh, plan)).await {
            Ok(followed) => followed,
            Err(_) => Err(dial::too_slow(self.info.destination.address, limit)),
        }
    }

    async fn follow(&mut self, mesh: &Mesh, plan: &Plan) -> Result<Remote, Failure> {
        match plan {
            Plan::Tunnel(tunnel) | Plan::Waypoint(WaypointTunnel { tunnel, .. }) => {
                let opened = dial::tunnel(self.pool, self.served.workload(), tunnel, self.client).await?;
                self.info.source.identity = Some(tunnel.source.identity());
                // Where several would have done, which one it was is not known here.
                self.info.destination.identity = match &tunnel.identities[..] {
                    [only] => Some(only.clone()),
                    _ => None,
                };
                Ok(Remote::Tunnel(opened))
            }
            // The application talks to itself, and sees itself as the peer.
            Plan::Local(local) => dial::itself(self.served, local, self.client).await.map(Remote::Plain),
            Plan::Passthrough(named @ Plaintext { hostname: Some(name), .. }) => {
                self.follow_name(mesh, named, name).await
            }
            Plan::Passthrough(direct) => {
                let limit = self.proxy.timeouts.endpoint();
                dial::plain(self.served, direct.address, limit).await.map(Remote::Plain)
            }
        }
    }

    /// Tries the addresses that an endpoint's name has now, one after the other.
    async fn follow_name(&mut self, mesh: &Mesh, named: &Plaintext, name: &str) -> Result<Remote, Failure> {
        let mut last = None;
        for address in dial::resolve(name, named.address).await? {
            let Some(plan) = resolved(mesh, named, address, rand::random()) else { continue };
            self.describe(&plan);
            match Box::pin(self.follow(mesh, &plan)).await {
                Err(failure @ Failure { elsewhere: true, .. }) => last = Some(failure),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| dial::unresolved(name, "no address that a peer can have")))
    }

    fn describe(&mut self, plan: &Plan) {
        match plan {
            Plan::Tunnel(tunnel) => self.describe_tunnel(Path::Tunnel, tunnel),
            Plan::Waypoint(to) => self.describe_tunnel(Path::Waypoint, &to.tunnel),
            Plan::Local(local) => self.describe_plaintext(local),
            Plan::Passthrough(plaintext) => self.describe_plaintext(plaintext),
        }
    }

    fn describe_tunnel(&mut self, path: Path, tunnel: &Tunnel) {
        let info = &mut self.info;
        info.path = path;
        info.mutual_tls = true;
        info.destination.address = tunnel.peer;
        info.destination.workload = Some(tunnel.destination.clone());
        info.hbone_address = Some(tunnel.authority);
        info.service.clone_from(&tunnel.service);
    }

    fn describe_plaintext(&mut self, plan: &Plaintext) {
        let info = &mut self.info;
        info.path = Path::Plaintext;
        info.mutual_tls = false;
        info.destination.address = plan.address;
        info.destination.workload.clone_from(&plan.destination);
        info.hbone_address = None;
        info.service.clone_from(&plan.service);
    }

    fn too_late(&mut self) -> Ending {
        if let Some((mesh, endpoint)) = self.trying.take() {
            self.proxy.endpoints.failed(&mesh, &endpoint);
        }
        let error = format!("not connected within {:?}", self.proxy.timeouts.connect);
        ending::unmade(Reason::ConnectTimeout, error)
    }
}

/// The client as peers know it: the workload's address of the family that was asked for, with the client's
/// port. Where connections are captured, the client itself connected over loopback.
fn client_of(source: Option<&Workload>, client: SocketAddr, destination: SocketAddr) -> SocketAddr {
    let addresses = || source.into_iter().flat_map(|source| &source.addresses);
    let same = addresses().find(|address| address.is_ipv4() == destination.is_ipv4());
    let address = same.or_else(|| addresses().next()).copied().unwrap_or(client.ip());
    SocketAddr::new(address, client.port())
}

/// The endpoint as the service has it; none where no choice was made, or the workload talks to itself.
fn endpoint(plan: &Plan, connection: &Connection) -> Option<Endpoint> {
    if matches!(plan, Plan::Local(_)) {
        return None;
    }
    let port = plan.chosen_of(connection)?;
    Some(Endpoint { port, workload: plan.destination()?.uid.clone() })
}

#[cfg(test)]
mod tests;
