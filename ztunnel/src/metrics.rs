//! All metrics of the daemon: [`show`], and those of what only a node daemon has. They are read when scraped.

use std::sync::Arc;

use ambit_core::chain;
use ambit_core::link::Link;
use ambit_daemon_kit::telemetry::exposition::{Exposition, Family};
use ambit_daemon_kit::telemetry::instruments::Counters;
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_loader::{Dataplane, KernelReason};
use ambit_proxy::report;
use ambit_xds::client::Status;
use tokio::sync::watch;

use crate::node::Node;
use crate::reason::from_kernel;
use crate::{direct, links};

/// Errors of `accept()`.
pub(crate) static ACCEPT_ERRORS: Counters<1> = Counters::new(
    "ambit_accept_errors_total",
    "Errors of accepting that concern a listener, not a single connection, by listener.",
    ["listener"],
);

/// What the daemon had to put right in the kernel and the run folder.
pub(crate) static REPAIRS: Counters<1> = Counters::new(
    "ambit_upkeep_repairs_total",
    "What differed in the kernel or the run folder from what the daemon wrote, and was put right, by kind.",
    ["kind"],
);

const KERNEL_REFUSALS: Family = Family::counter(
    "ambit_kernel_refusals_total",
    "Connections that the kernel programs refused, by reason.",
);
const RECORDS_LOST: Family = Family::counter(
    "ambit_kernel_records_lost_total",
    "Records of connections that found no room because the daemon did not read them fast enough.",
);
const MAP_ENTRIES: Family = Family::gauge(
    "ambit_map_entries",
    "Entries of the kernel's maps that pods share or that grow with the mesh, by map.",
);
const MAP_LIMIT: Family =
    Family::gauge("ambit_map_entries_limit", "How many entries each of these maps can have, by map.");
const UNLISTED: Family = Family::gauge(
    "ambit_destinations_unlisted",
    "Captured destinations that the kernel's map lacks. While there are any, all connections are captured.",
);
const TUNNEL_MEMORY: Family = Family::gauge(
    "ambit_tunnel_memory_bytes",
    "Bytes that tunnels hold: received, and not yet taken by their readers.",
);
const TUNNEL_MEMORY_LIMIT: Family =
    Family::gauge("ambit_tunnel_memory_limit_bytes", "How many bytes tunnels may hold.");
const PODS: Family = Family::gauge("ambit_pods_enrolled", "Pods that this daemon serves.");
const LINK_PACKETS: Family = Family::counter(
    "ambit_link_packets_dropped_total",
    "Packets that the programs on shared links dropped because they were not what they claimed, by reason.",
);
const LINKS: Family = Family::gauge(
    "ambit_direct_links",
    "Links of enrolled pods by kind: direct connections take none of kind \"unknown\".",
);
const POOL: Family =
    Family::gauge("ambit_pool_connections", "HBONE connections that are kept for new tunnels.");

/// Adds all of the daemon's metrics.
pub(crate) fn show(node: &Arc<Node>, xds: watch::Receiver<Status>, metrics: &Metrics) {
    let node = node.clone();
    metrics.collect(move |all| {
        // What open connections carried until now.
        node.proxy.connections.progress();
        node.direct.count();
        report::show(all);
        report::ending::DRY_RUN.show(all);
        ambit_proxy::metrics::show(&xds.borrow(), all);
        ACCEPT_ERRORS.show(all);
        direct::CLOSED.show(all);
        REPAIRS.show(all);
        all.single(&PODS, node.pods.all().len());
        show_links(&node.links.views(), all);
        links::ADDRESS_MOVES.show(all);
        all.single(&POOL, node.pool.connections());
        node.identities.certificates.show(all);
        node.proxy.endpoints.show(all);
        kernel(&node.dataplane, all);
        maps(&node.dataplane, all);
        direct::SHARE_USED.show(all);
        let (limit, held) = ambit_hbone::memory::usage();
        all.single(&TUNNEL_MEMORY, held);
        all.single(&TUNNEL_MEMORY_LIMIT, limit);
        all.single(&UNLISTED, node.capture.unlisted());
    });
}

fn show_links(views: &[links::View], all: &mut Exposition) {
    let mut family = all.family(&LINKS);
    for kind in Link::NAMES {
        let count = views.iter().filter(|view| view.link.name() == kind).count();
        family.sample(&[("kind", kind)], count);
    }
}

/// How full the kernel's maps are.
fn maps(dataplane: &Dataplane, all: &mut Exposition) {
    let fill = dataplane.fill().unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "failed to read how full the kernel's maps are");
        Vec::default()
    });
    let mut entries = all.family(&MAP_ENTRIES);
    for map in &fill {
        entries.sample(&[("map", map.map)], map.entries);
    }
    let mut limits = all.family(&MAP_LIMIT);
    for map in &fill {
        limits.sample(&[("map", map.map)], map.limit);
    }
}

/// Connections that the kernel's programs refused may never reach a connection's report: their counters are
/// read.
fn kernel(dataplane: &Dataplane, all: &mut Exposition) {
    let mut refusals = all.family(&KERNEL_REFUSALS);
    let counters = dataplane.counters().unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "failed to read the kernel's counters");
        Vec::default()
    });
    let mut lost = 0;
    let (packets, connections): (Vec<_>, Vec<_>) =
        counters.into_iter().partition(|(reason, _)| reason.is_of_packets());
    for (reason, count) in connections.into_iter().filter(|(_, count)| *count > 0) {
        if reason == KernelReason::RecordLost {
            lost = count;
        } else {
            refusals.sample(&[("reason", from_kernel(reason).name())], count);
        }
    }
    let mut dropped = all.family(&LINK_PACKETS);
    for (reason, count) in packets {
        dropped.sample(&[("reason", from_kernel(reason).name())], count);
    }
    all.single(&RECORDS_LOST, lost);
}
