//! Which endpoint serves a connection: services of a shop, connections to them, which server answered and by
//! which path.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use ambit_harness::{Family, Lab, Node, Place, PodSpec, ServiceSpec, eventually};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::paths::{enforces, warm};
use crate::shares::Counts;
use crate::talk::{Server, TIMEOUT, ask, connect};

/// Where the servers listen.
pub const APP: u16 = 7000;
/// The port of the services.
pub const FRONT: u16 = 80;
/// Connections enough that an endpoint with a third of the choices is missed once in ten million times.
pub const LOOK: usize = 40;

/// A service of the shop for the pods with a label.
pub fn service(name: &str, label: &str) -> ServiceSpec {
    ServiceSpec::new(&format!("shop/{name}")).selects_label(label, "yes").port(FRONT, APP)
}

/// A pod of the shop on a node.
pub fn pod(name: &str, node: usize) -> PodSpec {
    PodSpec::new(&format!("shop/{name}")).node(node)
}

/// A server in each of these pods of the shop, which greets with the pod's name.
pub fn serve(lab: &Lab, pods: &[&str]) -> Result<Vec<Server>> {
    pods.iter().map(|name| Server::start(&lab.pod(&format!("shop/{name}")), name, APP)).collect()
}

/// Where a service of the shop is reached.
pub fn at(lab: &Lab, service: &str, family: Family) -> SocketAddr {
    SocketAddr::new(lab.service(&format!("shop/{service}"), family), FRONT)
}

/// Makes connections one after the other, each of which must be answered: how often each server answered.
pub fn draw(client: &Place, to: SocketAddr, times: usize) -> Result<Counts> {
    Ok(counts(&greetings(client, to, times)?))
}

/// The same, one by one: the server that answered, and the client's port.
fn greetings(client: &Place, to: SocketAddr, times: usize) -> Result<Vec<(String, u16)>> {
    let one = |number| greeting(to).with_context(|| format!("connection {number} to {to}"));
    client.run(|| (0..times).map(one).collect())?
}

fn greeting(to: SocketAddr) -> Result<(String, u16)> {
    let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let port = stream.local_addr()?.port();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("failed to read a greeting")?;
    Ok((line.split_whitespace().next().context("an empty greeting")?.to_owned(), port))
}

fn counts(greetings: &[(String, u16)]) -> Counts {
    let mut counts = Counts::new();
    for (server, _) in greetings {
        *counts.entry(server.clone()).or_default() += 1;
    }
    counts
}

/// Requires that these answer, each of them, and no other.
pub fn served_by(client: &Place, to: SocketAddr, expected: &[&str]) -> Result<()> {
    let times = if expected.len() > 1 { LOOK } else { 10 };
    let counts = draw(client, to, times)?;
    let found: BTreeSet<&str> = counts.keys().map(String::as_str).collect();
    ensure!(found == expected.iter().copied().collect(), "{counts:?} instead of {expected:?}");
    Ok(())
}

/// Requires that a connection is refused because no endpoint may serve it, and that the client's daemon
/// reports that.
pub fn no_endpoint_serves(node: &Node, client: &Place, to: SocketAddr) -> Result<()> {
    let mark = node.ztunnel.log_mark();
    ensure!(ask(client, to).is_err(), "a server answers");
    let record = failure(node, mark, "no_endpoint")?;
    ensure!(record["error"].as_str().is_some_and(|error| error.contains("no ready endpoint")), "{record}");
    ensure!(record["dst.addr"] == to.to_string().as_str(), "{record}");
    Ok(())
}

/// The record of an outbound connection since a mark that could not be made, for this reason.
pub fn failure(node: &Node, mark: u64, reason: &str) -> Result<Value> {
    eventually(&format!("the daemon says {reason}"), || {
        let records = outbound(node, mark);
        let found = records.iter().find(|record| record["reason"] == reason);
        found.cloned().with_context(|| format!("{records:?}"))
    })
}

/// A client's daemon's records since a mark.
fn outbound(node: &Node, mark: u64) -> Vec<Value> {
    let records = node.records_since(mark);
    records.into_iter().filter(|record| record["direction"] == "outbound").collect()
}

/// Draws, and requires that the connections to these pods were all direct and all others in tunnels: where
/// there are such pods, and the pairs are warm, the kernel chose and the daemon did not choose again.
pub fn draw_and_trace(
    node: &Node,
    client: &Place,
    to: SocketAddr,
    times: usize,
    local: &[&str],
) -> Result<Counts> {
    let mark = node.ztunnel.log_mark();
    let greetings = greetings(client, to, times)?;
    let path = |server: &str| if local.contains(&server) { "direct" } else { "tunnel" };
    // A port may be used twice, for different endpoints.
    let mut wanted = BTreeMap::<Route, usize>::new();
    for (server, port) in &greetings {
        *wanted.entry((*port, server.clone(), path(server).to_owned())).or_default() += 1;
    }
    eventually(&format!("all connections to {local:?} are direct, all others are not"), || {
        let mut missing = wanted.clone();
        for route in outbound(node, mark).iter().filter_map(route) {
            missing.entry(route).and_modify(|count| *count = count.saturating_sub(1));
        }
        missing.retain(|_, count| *count > 0);
        let some = missing.keys().next();
        ensure!(missing.is_empty(), "{} of {times} are not reported, as {some:?}", missing.len());
        Ok(())
    })?;
    Ok(counts(&greetings))
}

/// The client's port, the destination workload and the path of a connection.
type Route = (u16, String, String);

fn route(record: &Value) -> Option<Route> {
    let field = |name: &str| Some(record[name].as_str()?.to_owned());
    let client: SocketAddr = field("src.addr")?.parse().ok()?;
    Some((client.port(), field("dst.workload")?, field("path")?))
}

/// Waits until the kernel has a cached verdict for each of these pods of the client's node.
pub fn warm_all(lab: &Lab, client: &Place, family: Family, pods: &[&str]) -> Result<()> {
    pods.iter().try_for_each(|name| {
        let pod = lab.pod(&format!("shop/{name}"));
        warm(lab.node_of(&pod), client, SocketAddr::new(pod.ip(family), APP))
    })
}

/// Makes a pod ready or unready, and waits until every daemon acts by that.
pub fn set_ready(lab: &Lab, name: &str, ready: bool) -> Result<()> {
    let mut spec = lab.pod(&format!("shop/{name}")).spec;
    spec.ready = ready;
    let uid = spec.uid();
    lab.update_pod(spec)?;
    everywhere(lab, &format!("{name} ready: {ready}"), |dump| {
        let found = workload(dump, &uid).with_context(|| format!("{uid} is not known"))?;
        ensure!(found["healthy"] == ready, "{found}");
        Ok(())
    })
}

/// Waits until every daemon's state is as wanted, and in force.
pub fn everywhere(lab: &Lab, what: &str, check: impl Fn(&Value) -> Result<()>) -> Result<()> {
    lab.nodes.iter().try_for_each(|node| enforces(node, what, &check))
}

/// A workload in a dump, by its UID.
pub fn workload<'a>(dump: &'a Value, uid: &str) -> Option<&'a Value> {
    dump["workloads"].as_array()?.iter().find(|workload| workload["uid"] == uid)
}

/// A connection with its greeting read.
#[derive(Debug)]
pub struct Open {
    /// The server that answered.
    pub name: String,
    stream: BufReader<TcpStream>,
}

impl Open {
    /// Connects and reads the greeting.
    pub fn new(client: &Place, to: SocketAddr) -> Result<Self> {
        let mut stream = BufReader::new(connect(client, to)?);
        let mut line = String::new();
        stream.read_line(&mut line).context("failed to read a greeting")?;
        let name = line.split_whitespace().next().context("an empty greeting")?.to_owned();
        Ok(Self { name, stream })
    }

    /// Sends a few bytes and reads their echo.
    pub fn echo(&mut self) -> Result<()> {
        let said = b"still there?";
        self.stream.get_mut().write_all(said)?;
        let mut heard = [0; 12];
        self.stream
            .read_exact(&mut heard)
            .with_context(|| format!("failed to read an answer of {}", self.name))?;
        ensure!(heard == *said);
        Ok(())
    }
}
