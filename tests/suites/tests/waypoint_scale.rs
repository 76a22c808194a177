//! A waypoint in front of 1,000 services with 5,000 HTTPRoutes while these change, up to ten a second: how
//! long a change takes from its file to the first request that shows it, and from the controller's
//! publication on, and what the waypoint weighs.
//!
//! Controller, ztunnels, waypoint, client and server share the machine's processors. The time from the file
//! on contains the controller's reading of the folder: a file is read when it has been the same for 100 ms.

use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use ambit_harness::{Lab, NamespaceSpec, PodSpec, ServiceSpec, Waypoint, eventually, within};
use ambit_suites::web::{Client, WebServer};
use anyhow::{Context, Result, ensure};

const PORT: u16 = 8080;
const SERVICES: usize = 1000;
const ROUTES_OF_EACH: usize = 5;
/// Changes that are timed, one after the other, and how many there are in a second at most.
const CHANGES: u32 = 100;
const PER_SECOND: u32 = 10;
/// Several thousand objects are read at first.
const DEADLINE: Duration = Duration::from_mins(2);
/// Of the waypoint, resident. The goal is 40 MB; what is above means that something has grown.
const MEMORY_KIB: u64 = 60 << 10;
/// Only what is broken is slower, also on a busy machine.
const SLOWEST_MEDIAN: Duration = Duration::from_secs(5);

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {namespace: shop, \
                       name: waypoint}\nspec:\n  gatewayClassName: ambit-waypoint\n  listeners: [{name: \
                       mesh, port: 15008, protocol: HBONE}]\n";

fn address(service: usize) -> SocketAddr {
    let [high, low] = u16::try_from(service).expect("a thousand services").to_be_bytes();
    SocketAddr::new(Ipv4Addr::new(10, 97, high, low).into(), 80)
}

/// All services, none with pods of its own: the routes lead elsewhere.
fn services() -> String {
    (0..SERVICES).fold(String::new(), |mut all, number| {
        let address = address(number).ip();
        let _ = write!(
            all,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: service-{number}}}\n\
             spec: {{clusterIP: {address}, \
             ports: [{{name: http, port: 80, targetPort: {PORT}, protocol: TCP}}]}}\n"
        );
        all
    })
}

fn name(service: usize, route: usize) -> String {
    format!("route-{service}-{route}")
}

/// A route for a path of its own, whose responses tell its version.
fn route(service: usize, route: usize, version: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{namespace: shop, name: \
         {}}}\nspec:\n  parentRefs: [{{group: \"\", kind: Service, name: service-{service}}}]\n  rules:\n  \
         \x20 - matches: [{{path: {{type: PathPrefix, value: /path-{route}}}}}]\n      filters: [{{type: \
         ResponseHeaderModifier, responseHeaderModifier: \
         {{set: [{{name: version, value: \"{version}\"}}]}}}}]\n  \
         \x20   backendRefs: [{{name: server, port: 80}}]\n",
        name(service, route)
    )
}

fn lab() -> Result<Lab> {
    Lab::builder()
        .namespace(NamespaceSpec::mesh("shop").label("istio.io/use-waypoint", "waypoint"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/server").node(1))
        .service(ServiceSpec::new("shop/server").port(80, PORT).protocol("http"))
        .service(ServiceSpec::new("shop/waypoint").port(15008, 15008))
        .object("gateway", GATEWAY)
        .start()
}

/// How many routes the waypoint has of how many services.
fn attached(waypoint: &Waypoint) -> Result<(usize, usize)> {
    let dump: serde_json::Value = serde_json::from_str(&waypoint.daemon.get(15000, "/config_dump")?)?;
    let routes = dump["routes"].as_array().context("no routes")?;
    let of = |service: &serde_json::Value| service["attached"].as_array().map_or(0, Vec::len);
    Ok((routes.iter().map(of).sum(), routes.len()))
}

#[test]
fn changed_routes_act_soon_among_five_thousand() -> Result<()> {
    let lab = lab()?;
    let web = lab.pod("shop/web");
    let _server = WebServer::start(&lab.pod("shop/server"), "server", PORT)?;
    let waypoint = lab.waypoint(PodSpec::new("shop/waypoint").node(1), "shop/waypoint", "")?;
    let before = waypoint.daemon.memory()?;

    lab.controller.stop()?;
    lab.apply("services", &services())?;
    for service in 0..SERVICES {
        for number in 0..ROUTES_OF_EACH {
            lab.apply(&name(service, number), &route(service, number, 0))?;
        }
    }
    lab.start_controller()?;
    let began = Instant::now();
    within(DEADLINE, "the waypoint has all routes", || {
        let (routes, services) = attached(&waypoint)?;
        ensure!(routes == SERVICES * ROUTES_OF_EACH, "{routes} routes of {services} services");
        Ok(())
    })?;
    let (first, after) = (began.elapsed(), waypoint.daemon.memory()?);

    let (mut times, mut published_times) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for change in 0..CHANGES {
        let (service, number) = chosen(change);
        let path = format!("/path-{number}");
        let mut client = Client::connect(&web, address(service))?;
        let answer = eventually("the service answers", || client.get(&path, &[]))?;
        ensure!(answer.header("version") == Some("0"), "{}", answer.head);
        // The pace of changes; one that took longer makes no pause.
        std::thread::sleep(
            (began + change * Duration::from_secs(1) / PER_SECOND).duration_since(Instant::now()),
        );
        let version = change + 1;
        let text = route(service, number, version);
        let (changed, mark) = (Instant::now(), lab.controller.log_mark());
        lab.apply(&name(service, number), &text)?;
        loop {
            let answer = client.get(&path, &[])?;
            ensure!(answer.status == 200, "{}", answer.head);
            if answer.header("version") == Some(&version.to_string()) {
                break;
            }
            ensure!(changed.elapsed() < DEADLINE, "change {change} does not act: {}", answer.head);
        }
        let visible = SystemTime::now();
        times.push(changed.elapsed());
        let published = published(&lab.controller.log_since(mark))?;
        published_times.push(visible.duration_since(published).unwrap_or_default());
    }
    let took = began.elapsed();
    let end = waypoint.daemon.memory()?;
    let (times, published) = (Times::new(times), Times::new(published_times));
    println!(
        "{} routes of {SERVICES} services, there after {:.1} s; {:.1} changes a second, each visible after \
         {times} from its file, {published} from its publication; the waypoint's memory {:.1} MB before, \
         {:.1} MB with them, {:.1} MB after {CHANGES} changes",
        SERVICES * ROUTES_OF_EACH,
        first.as_secs_f64(),
        f64::from(CHANGES) / took.as_secs_f64(),
        megabytes(before),
        megabytes(after),
        megabytes(end),
    );
    ensure!(times.at(50) < SLOWEST_MEDIAN, "a change takes {times}");
    ensure!(end < MEMORY_KIB, "the waypoint needs {end} KiB");
    lab.finish()
}

/// Another route of another service for each change, from all over them.
fn chosen(change: u32) -> (usize, usize) {
    let number = usize::try_from(change).expect("a small number") * 37;
    (number % SERVICES, number % ROUTES_OF_EACH)
}

/// When the controller published a changed route, by its own log.
fn published(log: &str) -> Result<SystemTime> {
    let records = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let of_route = |record: &serde_json::Value| {
        record["message"] == "configuration published" && record["routes"].as_u64() > Some(0)
    };
    let record = records.into_iter().find(of_route).context("no route was published")?;
    let time: jiff::Timestamp = record["timestamp"].as_str().context("no timestamp")?.parse()?;
    Ok(time.into())
}

/// Times in order, the shortest first.
struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    fn at(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, most] = [50, 99, 100].map(|percent| self.at(percent).as_secs_f64() * 1e3);
        write!(f, "p50 {p50:.1} ms, p99 {p99:.1} ms, most {most:.1} ms")
    }
}

#[expect(clippy::cast_precision_loss, reason = "a process has less than 2^52 KiB")]
fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}
