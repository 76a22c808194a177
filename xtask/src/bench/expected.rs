//! What the figures are expected to reach: the floor of this stage of the project, and the aim of its design.

use super::loads::{CONNECTIONS, PROXIED, REQUESTS, ROUND_TRIP, THROUGHPUT};
use super::system::System;

pub(super) const IDLE: [&str; 2] = ["memory, idle: client's daemon", "memory, idle: server's daemon"];
pub(super) const PER_CONNECTION: [&str; 2] =
    ["memory per idle connection: client's daemon", "memory per idle connection: server's daemon"];

pub(super) const PROXY_IDLE: &str = "HTTP proxy: memory, idle";
pub(super) const PROXY_HELD: &str = "HTTP proxy: memory with 1,000 connections";

/// Which value of a metric is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// The ratio to plain.
    Ratio,
    /// The figure itself.
    Value,
}

/// A limit on one side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    AtLeast(f64),
    MoreThan(f64),
    AtMost(f64),
}

impl Bound {
    pub(super) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::MoreThan(bound) => value > bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    pub(super) fn limit(self) -> f64 {
        match self {
            Self::AtLeast(bound) | Self::MoreThan(bound) | Self::AtMost(bound) => bound,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
            Self::MoreThan(bound) => write!(f, "> {bound}"),
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
        }
    }
}

/// One expectation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) system: System,
    pub(super) metric: &'static str,
    pub(super) of: Of,
    pub(super) floor: Option<Bound>,
    pub(super) aim: Bound,
}

/// All expectations.
pub(super) fn all() -> Vec<Expected> {
    use Bound::{AtLeast, AtMost};
    use System::{Direct, Tunnel};
    let ratio = |system, metric, floor, aim| Expected { system, metric, of: Of::Ratio, floor, aim };
    let value =
        |system, metric, floor, aim| Expected { system, metric, of: Of::Value, floor: Some(floor), aim };
    vec![
        ratio(Tunnel, THROUGHPUT, Some(AtLeast(0.50)), AtLeast(0.65)),
        ratio(Tunnel, REQUESTS, Some(AtLeast(0.35)), AtLeast(0.45)),
        ratio(Tunnel, CONNECTIONS, Some(AtLeast(0.50)), AtLeast(0.70)),
        ratio(Tunnel, ROUND_TRIP, None, AtMost(1.4)),
        ratio(Direct, THROUGHPUT, Some(AtLeast(0.95)), AtLeast(0.97)),
        ratio(Direct, REQUESTS, Some(AtLeast(0.95)), AtLeast(0.95)),
        ratio(Direct, CONNECTIONS, Some(AtLeast(0.95)), AtLeast(0.90)),
        ratio(Direct, ROUND_TRIP, Some(AtMost(1.05)), AtMost(1.05)),
        value(Tunnel, IDLE[0], AtMost(14.0), AtMost(12.0)),
        value(Tunnel, IDLE[1], AtMost(14.0), AtMost(12.0)),
        value(Tunnel, PER_CONNECTION[0], AtMost(4.0), AtMost(3.0)),
        value(Tunnel, PER_CONNECTION[1], AtMost(4.0), AtMost(3.0)),
        // None, as exactly as pages shared by thousands of connections can tell.
        value(Direct, PER_CONNECTION[0], AtMost(0.1), AtMost(0.1)),
    ]
}

/// A system must reach this multiple of what another does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beside {
    pub(super) system: System,
    pub(super) metric: &'static str,
    pub(super) other: System,
    /// Of the other, for reports.
    pub(super) of: &'static str,
    pub(super) floor: Option<Bound>,
    pub(super) aim: Bound,
}

/// All expectations of one system beside another.
pub(super) fn beside() -> Vec<Beside> {
    use Bound::{AtLeast, MoreThan};
    use System::{Envoy, EnvoyHttp, Haproxy, Tunnel, Waypoint, WaypointRoutes};
    let above = |metric| Beside {
        system: Tunnel,
        metric,
        other: Envoy,
        of: "× Envoy pair",
        floor: Some(MoreThan(1.0)),
        aim: MoreThan(1.0),
    };
    let proxied = |other, of, floor, aim| Beside { system: Waypoint, metric: PROXIED, other, of, floor, aim };
    let many_routes = Beside {
        system: WaypointRoutes,
        metric: PROXIED,
        other: Waypoint,
        of: "× one route",
        floor: Some(AtLeast(0.95)),
        aim: AtLeast(0.95),
    };
    vec![
        above(THROUGHPUT),
        above(REQUESTS),
        above(CONNECTIONS),
        proxied(EnvoyHttp, "× Envoy", Some(AtLeast(1.5)), AtLeast(1.5)),
        proxied(Haproxy, "× HAProxy", None, AtLeast(0.8)),
        many_routes,
    ]
}
