//! Pods of one node on one bridge, all enrolled and in strict mode: plaintext can only arrive over the direct
//! path.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::lab::{Daemon, Lab, Namespace, address, ip, until};
use ambit_loader::{
    Dataplane, Flow, Inbound, InboundMode, Lease, Record, RecordKind, Settings, Verdict, WorkloadNumber,
};

pub(crate) const CLIENT: usize = 0;
pub(crate) const SERVER: usize = 1;
pub(crate) const OTHER: usize = 2;

/// Addresses of pods by their index.
pub(crate) const V4: [&str; 3] = ["10.3.0.2", "10.3.0.3", "10.3.0.4"];
pub(crate) const V6: [&str; 3] = ["fd00:3::2", "fd00:3::3", "fd00:3::4"];
pub(crate) const NODE: &str = "10.3.0.1";
/// A service's addresses, which no host has.
pub(crate) const SERVICE_V4: &str = "10.96.0.10";
pub(crate) const SERVICE_V6: &str = "fd00:96::10";

pub(crate) const LEASE: Duration = Duration::from_mins(10);

pub(crate) struct Neighbours {
    // Dropped before the lab, which detaches the instance.
    pub(crate) dataplane: Dataplane,
    pub(crate) daemons: Vec<Daemon>,
    pub(crate) pods: Vec<Namespace>,
    pub(crate) node: Namespace,
    records: Mutex<Vec<Record>>,
    // Dropped last.
    lab: Lab,
}

impl Neighbours {
    pub(crate) fn new() -> Self {
        Self::with_object(None)
    }

    /// With the programs of another object than the embedded one.
    pub(crate) fn with_object(object: Option<PathBuf>) -> Self {
        let mut lab = Lab::new();
        let dataplane = lab.dataplane_with(object);
        let node = Namespace::new();
        node.run(|| {
            ip("link add br0 type bridge");
            ip(&format!("addr add {NODE}/24 dev br0"));
            ip("link set br0 up");
        });
        let pods: Vec<Namespace> = V4.iter().map(|_| Namespace::new()).collect();
        for (index, pod) in pods.iter().enumerate() {
            node.run(|| {
                ip(&format!("link add pod{index} type veth peer name eth0 netns {}", pod.path()));
                ip(&format!("link set pod{index} master br0 up"));
            });
            pod.run(|| {
                ip(&format!("addr add {}/24 dev eth0", V4[index]));
                ip(&format!("addr add {}/64 dev eth0 nodad", V6[index]));
                ip("link set eth0 up");
            });
        }
        let daemons: Vec<Daemon> = pods.iter().map(|pod| pod.enrol(&dataplane)).collect();
        for (index, pod) in pods.iter().enumerate() {
            let own = [address(V4[index]), address(V6[index])];
            dataplane.set_addresses(daemons[index].number, &own.into()).expect("addresses");
            for address in own {
                dataplane.add_destination(address).expect("a destination");
            }
            let strict = Inbound { default: InboundMode::Strict, ports: [].into(), probe_ports: [].into() };
            dataplane.set_inbound(pod.cookie, &strict).expect("a mode");
        }
        for service in [SERVICE_V4, SERVICE_V6] {
            dataplane.add_destination(address(service)).expect("a destination");
        }
        dataplane.set_host(node.cookie).expect("the node's namespace");
        for lease in [Lease::Verdicts, Lease::OpenMode] {
            dataplane.renew_lease(lease, LEASE).expect("a lease");
        }
        Self { dataplane, daemons, pods, node, records: Mutex::default(), lab }
    }

    pub(crate) fn number(&self, pod: usize) -> WorkloadNumber {
        self.daemons[pod].number
    }

    /// A verdict that is valid now.
    pub(crate) fn verdict(&self, source: usize, destination: usize, to: SocketAddr) -> Verdict {
        let destination = self.number(destination);
        let generation = self.dataplane.generation(destination).expect("generations").expect("enrolled");
        Verdict { source: self.number(source), destination, address: to, generation }
    }

    /// Caches a verdict.
    pub(crate) fn allow(&self, source: usize, destination: usize, to: SocketAddr) {
        self.dataplane.add_verdict(&self.verdict(source, destination, to)).expect("cached");
    }

    pub(crate) fn flows(&self) -> Vec<Flow> {
        self.dataplane.flows().expect("flows")
    }

    /// Permits plaintext at a pod.
    pub(crate) fn open(&self, pod: usize) {
        let open = Inbound { default: InboundMode::Open, ports: [].into(), probe_ports: [].into() };
        self.dataplane.set_inbound(self.pods[pod].cookie, &open).expect("a mode");
    }

    pub(crate) fn settings(&self) -> &Settings {
        self.lab.last()
    }

    /// The number of entries of a map.
    pub(crate) fn entries(&self, map: &str) -> usize {
        self.dataplane.occupancy().expect("maps")[map]
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drain(&self) {
        let mut records = self.taken();
        self.dataplane.records(&mut |record| records.push(record)).expect("records");
    }

    /// Waits for a record of this kind about a connection from this address (or to it, for a refused
    /// `connect()`), takes it and keeps the others.
    pub(crate) fn record(&self, kind: RecordKind, about: SocketAddr) -> Record {
        let mut found = None;
        until(&format!("a record {kind:?} about {about}"), || {
            self.drain();
            let mut records = self.taken();
            let fits =
                |record: &Record| record.kind == kind && record.client.unwrap_or(record.server) == about;
            found = records.iter().position(fits).map(|index| records.remove(index));
            found.is_some()
        });
        found.expect("found above")
    }

    /// Takes all records that were not taken yet.
    pub(crate) fn remaining_records(&self) -> Vec<Record> {
        self.drain();
        std::mem::take(&mut *self.taken())
    }

    /// Waits until no flow is tracked.
    pub(crate) fn until_no_flow_is_tracked(&self) {
        until("no flow is tracked", || self.flows().is_empty());
    }
}
