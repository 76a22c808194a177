//! A waypoint, endpoints with their ztunnels and clients, each with a loopback address of its own: [`Lab`].

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambit_certificates::{Certificates, Settings};
use ambit_core::inbound::HBONE_PORT;
use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{
    AppProtocol, Identity, ServiceKey, Waypoint as Binding, WaypointDestination, Workload,
};
use ambit_core::route::{
    Attached, Backend, Backends, Filter, Match, Retry, Route, RouteKey, RouteKind, Rule, ServerNameMatch,
    ServiceRoutes, Target, Timeouts,
};
use ambit_core::testing::{behind, service, service_key};
use ambit_hbone::memory::Account;
use ambit_hbone::request::ConnectRequest;
use ambit_hbone::{Http2, Tunnel, client, tls};
use ambit_proxy::inbound;
use ambit_proxy::proxy::{Proxy, Timeouts as ProxyTimeouts};
use ambit_proxy::testing::{uid, workload};
use ambit_proxy::workload::{HostWorkload, LocalWorkload};
use ambit_waypoint::accept;
use ambit_waypoint::waypoint::{Limits, Waypoint};
use ambit_waypoint::worker::Worker;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::ca::{CA, Ca};

/// Longer than anything takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;
pub(crate) type Handler =
    Arc<dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> + Send + Sync>;

/// Everything.
pub(crate) struct Lab {
    pub(crate) worker: Arc<Worker>,
    certificates: Certificates,
    network: [u8; 2],
    mesh: Mutex<Mesh>,
    proxies: Mutex<Vec<Arc<Proxy>>>,
}

/// An endpoint's application.
pub(crate) struct App {
    /// Requests that it has got.
    pub(crate) requests: Arc<AtomicUsize>,
    /// Connections that it has accepted.
    pub(crate) connections: Arc<AtomicUsize>,
}

impl App {
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Two bytes of a loopback network that no other lab has.
fn network() -> [u8; 2] {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let process = std::process::id() as usize;
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    let second = u8::try_from((number + process * 31) % 250).expect("below 250");
    [u8::try_from(process % 200 + 20).expect("below 220"), second]
}

impl Lab {
    pub(crate) async fn new() -> Arc<Self> {
        Self::with(Limits { drain_grace: Duration::from_millis(200), ..Limits::default() }).await
    }

    pub(crate) async fn with(limits: Limits) -> Arc<Self> {
        let network = network();
        let certificates = Certificates::new(Ca, &Settings { ttl: Duration::from_hours(1), roots: CA.pem() })
            .expect("certificates");
        let own = IpAddr::V4(Ipv4Addr::new(127, network[0], network[1], 1));
        let proxy = Arc::new(Proxy::new(ProxyTimeouts { connect: Duration::from_secs(6) }, None));
        let served = HostWorkload { workload: LocalWorkload::new(uid("waypoint")), address: Some(own) };
        let worker = Worker::new(Arc::new(Waypoint::new(proxy.clone(), served, limits)));
        let lab = Arc::new(Self {
            worker: worker.clone(),
            certificates,
            network,
            mesh: Mutex::new(Mesh::new()),
            proxies: Mutex::new(vec![proxy]),
        });
        let mut service = service("shop/waypoint", &[&lab.ip(2)], &[(HBONE_PORT, HBONE_PORT)]);
        service.waypoint = None;
        let workload = behind(workload("waypoint", &[&lab.ip(1)]), &service);
        worker.waypoint.served.workload.identify(Some(&workload.identity()), &lab.certificates);
        lab.put([Change::PutService(Arc::new(service)), Change::PutWorkload(Arc::new(workload))]);
        let listener = TcpListener::bind((own, HBONE_PORT)).await.expect("the waypoint's address");
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                tokio::spawn(accept::connection(worker.clone(), stream, peer));
            }
        });
        lab
    }

    pub(crate) fn ip(&self, host: u8) -> String {
        self.address(host, 0).ip().to_string()
    }

    pub(crate) fn address(&self, host: u8, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, self.network[0], self.network[1], host)), port)
    }

    /// Changes the mesh for all proxies.
    pub(crate) fn put(&self, changes: impl IntoIterator<Item = Change>) {
        let mut mesh = self.mesh.lock().expect("no panic");
        mesh.apply(changes);
        for proxy in &*self.proxies.lock().expect("no panic") {
            proxy.mesh.publish(mesh.clone());
        }
    }

    /// A service behind the waypoint at host number `host`, port 80.
    pub(crate) fn service(&self, name: &str, host: u8, protocol: AppProtocol) -> SocketAddr {
        let mut service = service(&format!("shop/{name}"), &[&self.ip(host)], &[(80, 8080)]);
        service.ports[0].app_protocol = protocol;
        let waypoint = WaypointDestination::Hostname(service_key("shop/waypoint"));
        service.waypoint = Some(Binding::new(waypoint));
        self.put([Change::PutService(Arc::new(service))]);
        self.address(host, 80)
    }

    /// A workload that is an endpoint of a service, in the mesh, with its ztunnel but without an application.
    pub(crate) async fn endpoint(&self, name: &str, host: u8, of: &str) -> SocketAddr {
        let workload = self.member(name, host, of);
        let proxy = Arc::new(Proxy::new(ProxyTimeouts { connect: Duration::from_secs(6) }, None));
        proxy.mesh.publish(self.mesh.lock().expect("no panic").clone());
        self.proxies.lock().expect("no panic").push(proxy.clone());
        let address = self.address(host, HBONE_PORT);
        let served = Arc::new(HostWorkload {
            workload: LocalWorkload::new(workload.uid.clone()),
            address: Some(address.ip()),
        });
        served.workload.identify(Some(&workload.identity()), &self.certificates);
        let listener = TcpListener::bind(address).await.expect("the endpoint's address");
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                tokio::spawn(inbound::tunnels(proxy.clone(), served.clone(), stream, peer));
            }
        });
        self.address(host, 8080)
    }

    /// The same in the mesh's eyes only: nothing listens.
    pub(crate) fn member(&self, name: &str, host: u8, of: &str) -> Workload {
        let service = service(&format!("shop/{of}"), &[], &[(80, 8080)]);
        let workload = behind(workload(name, &[&self.ip(host)]), &service);
        self.put([Change::PutWorkload(Arc::new(workload.clone()))]);
        workload
    }

    /// An endpoint whose application answers HTTP/1 and HTTP/2.
    pub(crate) async fn app(&self, name: &str, host: u8, of: &str, handler: Handler) -> App {
        let address = self.endpoint(name, host, of).await;
        let listener = TcpListener::bind(address).await.expect("the application's address");
        let app = App { requests: Arc::default(), connections: Arc::default() };
        let (requests, connections) = (app.requests.clone(), app.connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, handler.clone(), requests.clone()));
            }
        });
        app
    }

    /// The client's connection to the waypoint, with the identity of its name.
    pub(crate) async fn connection(&self, name: &str, host: u8) -> client::Connection {
        let member = workload(name, &[&self.ip(host)]);
        let identity = member.identity();
        self.put([Change::PutWorkload(Arc::new(member))]);
        let lease = self.certificates.keep(&identity);
        let certificate = lease.get().await.expect("a certificate");
        let waypoint: Identity = "spiffe://cluster.local/ns/shop/sa/waypoint".parse().expect("an identity");
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(self.address(host, 0)).expect("the client's address");
        let stream = socket.connect(self.address(1, HBONE_PORT)).await.expect("the waypoint listens");
        let config = tls::client_config(&certificate, &[waypoint]);
        client::connect(stream, config, &Http2::default(), &Account::default()).await.expect("HBONE")
    }

    /// A tunnel of the client `web` to an address.
    pub(crate) async fn tunnel(&self, to: SocketAddr) -> Result<Tunnel, ambit_hbone::Error> {
        self.tunnel_of("web", 200, to).await
    }

    pub(crate) async fn tunnel_of(
        &self,
        name: &str,
        host: u8,
        to: SocketAddr,
    ) -> Result<Tunnel, ambit_hbone::Error> {
        let connection = self.connection(name, host).await;
        let request = ConnectRequest { forwarded: Some(self.address(host, 4711)), ..ConnectRequest::to(to) };
        connection.open(&request).await
    }

    pub(crate) async fn http1(&self, to: SocketAddr) -> http1::SendRequest<Body> {
        http1(self.tunnel(to).await.expect("a tunnel")).await
    }

    pub(crate) async fn http2(&self, to: SocketAddr) -> http2::SendRequest<Body> {
        http2(self.tunnel(to).await.expect("a tunnel")).await
    }
}

pub(crate) async fn http1(tunnel: Tunnel) -> http1::SendRequest<Body> {
    let (sender, connection) = http1::handshake(TokioIo::new(tunnel)).await.expect("HTTP/1");
    tokio::spawn(connection.with_upgrades());
    sender
}

pub(crate) async fn http2(tunnel: Tunnel) -> http2::SendRequest<Body> {
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(tunnel));
    let (sender, connection) = handshake.await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

/// Serves a connection of an application.
async fn serve(stream: TcpStream, handler: Handler, requests: Arc<AtomicUsize>) {
    let mut first = [0_u8; 3];
    let count = stream.peek(&mut first).await.unwrap_or(0);
    let service = service_fn(move |request| {
        requests.fetch_add(1, Ordering::SeqCst);
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    if &first[..count] == b"PRI" {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ended = server.serve_connection(TokioIo::new(stream), service).await;
    } else {
        let server = hyper::server::conn::http1::Builder::new();
        let _ended = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
    }
}

/// A handler of a function.
pub(crate) fn handler<F: Future<Output = Response<Body>> + Send + 'static>(
    answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
) -> Handler {
    Arc::new(move |request| Box::pin(answer(request)))
}

/// Answers with what it was asked, its name first, one line each.
pub(crate) fn echo(name: &'static str) -> Handler {
    handler(move |request| async move {
        let (head, body) = request.into_parts();
        let mut text = format!("{name}\n{} {} {:?}\n", head.method, head.uri, head.version);
        for (name, value) in &head.headers {
            let _ = writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
        let body = body.collect().await.expect("a body").to_bytes();
        let _ = write!(text, "\n{}", String::from_utf8_lossy(&body));
        Response::new(full(text))
    })
}

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    let request = Request::builder().uri(path).header("host", "cart.shop").body(full(""));
    request.expect("a request")
}

/// For HTTP/2: with the whole URI.
pub(crate) fn get2(path: &str) -> Request<Body> {
    Request::builder().uri(format!("http://cart.shop{path}")).body(full("")).expect("a request")
}

/// A response as status, headers, and text.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) text: String,
}

pub(crate) async fn told(response: Response<Incoming>) -> Told {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body");
    let trailers = body.trailers().cloned();
    let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Told { status: head.status, headers: head.headers, trailers, text }
}

impl Told {
    /// The value of a header that [`echo`] was sent.
    pub(crate) fn sent(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }
}

/// Waits for a state.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A rule without anything.
pub(crate) fn rule(backends: Vec<Backend>) -> Rule {
    Rule {
        name: None,
        matches: vec![Match::any()],
        filters: Vec::new(),
        backends: Backends::new(backends),
        timeouts: Timeouts::default(),
        retry: None,
    }
}

pub(crate) fn backend(name: &str, weight: u32) -> Backend {
    let target = Target::Service { service: key(name), port: 80 };
    Backend { target, weight, request_headers: Vec::new(), response_headers: Vec::new() }
}

pub(crate) fn key(name: &str) -> ServiceKey {
    service_key(&format!("shop/{name}"))
}

pub(crate) fn filtered(filters: Vec<Filter>, name: &str) -> Rule {
    Rule { filters, ..rule(vec![backend(name, 1)]) }
}

pub(crate) fn retrying(attempts: u32, codes: &[u16], name: &str) -> Rule {
    let codes = codes.iter().map(|code| StatusCode::from_u16(*code).expect("a status")).collect();
    let retry = Retry { attempts, codes, backoff: Duration::from_millis(10) };
    Rule { retry: Some(retry), ..rule(vec![backend(name, 1)]) }
}

/// The routes of a service: one HTTPRoute with these rules.
pub(crate) fn routes(service: &str, rules: Vec<Rule>) -> Change {
    routes_of(service, RouteKind::Http, vec![(&[], rules)])
}

/// The routes of a service: for each set of server names one of this kind with these rules.
pub(crate) fn routes_of(service: &str, kind: RouteKind, each: Vec<(&[&str], Vec<Rule>)>) -> Change {
    let attached = each.into_iter().enumerate().map(|(index, (names, rules))| {
        let key = RouteKey { kind, namespace: "shop".into(), name: format!("route-{index}").into() };
        let parse = |name: &&str| ServerNameMatch::parse(name).expect("a server name");
        let server_names = names.iter().map(parse).collect();
        Attached {
            route: Arc::new(Route { key, created: 0, server_names, rules }),
            port: None,
            consumer: None,
        }
    });
    Change::PutRoutes(Arc::new(ServiceRoutes::new(key(service), attached.collect())))
}

/// A backend that leads to nothing.
pub(crate) fn invalid(weight: u32) -> Backend {
    Backend { target: Target::Invalid { reason: "gone".into() }, ..backend("gone", weight) }
}

/// How often each name answered.
pub(crate) fn tally(names: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}
