//! What the status of a waypoint's Gateway says of its listeners: [`standings`], and [`accepted`] of all.
//!
//! A waypoint has one: the first with protocol HBONE. The others are not accepted, and do no harm.

use super::super::object::{Gateway, Listener};
use super::super::standing::{ListenerStanding, Statement};

/// The Gateway's own condition `Accepted`.
pub(super) fn accepted(gateway: &Gateway) -> Statement {
    if gateway.hbone().is_none() {
        let message = "no listener has the protocol HBONE: clients expect the waypoint at port 15008";
        return Statement::new("Accepted", true, "ListenersNotValid", message);
    }
    let refused = gateway.listeners.iter().filter(|listener| Refusal::of(gateway, listener).is_some());
    let refused: Vec<&str> = refused.map(|listener| listener.name.as_str()).collect();
    if refused.is_empty() {
        return Statement::new("Accepted", true, "Accepted", "");
    }
    let message = format!("not accepted: the listeners {}", refused.join(", "));
    Statement::new("Accepted", true, "ListenersNotValid", message)
}

/// The conditions of each listener. `unready` says why the waypoint has no ready endpoint.
pub(super) fn standings(gateway: &Gateway, unready: Option<&str>) -> Vec<ListenerStanding> {
    let of = |listener: &Listener| ListenerStanding {
        name: listener.name.clone(),
        conditions: conditions(gateway, listener, unready),
    };
    gateway.listeners.iter().map(of).collect()
}

/// Why a listener is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// It is not for HBONE.
    UnsupportedProtocol,
    /// The waypoint's listener has the port, and another protocol.
    ProtocolConflict,
    /// The waypoint's listener has the port, and nothing tells the two apart.
    HostnameConflict,
    /// A waypoint has one port.
    PortUnavailable,
}

impl Refusal {
    fn of(gateway: &Gateway, listener: &Listener) -> Option<Self> {
        let own = gateway.hbone();
        if own.is_some_and(|own| std::ptr::eq(own, listener)) {
            return None;
        }
        let same_port = own.is_some_and(|own| own.port == listener.port);
        Some(match (listener.is_hbone(), same_port) {
            (true, true) => Self::HostnameConflict,
            (true, false) => Self::PortUnavailable,
            (false, true) => Self::ProtocolConflict,
            (false, false) => Self::UnsupportedProtocol,
        })
    }

    /// The reason of `Accepted`.
    fn reason(self) -> &'static str {
        match self {
            Self::UnsupportedProtocol | Self::ProtocolConflict => "UnsupportedProtocol",
            Self::HostnameConflict | Self::PortUnavailable => "PortUnavailable",
        }
    }

    /// The reason of `Conflicted`, where two listeners cannot both be there.
    fn conflict(self) -> Option<&'static str> {
        match self {
            Self::UnsupportedProtocol | Self::PortUnavailable => None,
            Self::ProtocolConflict => Some("ProtocolConflict"),
            Self::HostnameConflict => Some("HostnameConflict"),
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::UnsupportedProtocol => "a waypoint's listener has the protocol HBONE",
            Self::ProtocolConflict => "the listener with the protocol HBONE has this port",
            Self::HostnameConflict => "another listener has this port and protocol",
            Self::PortUnavailable => "a waypoint has one port, that of its first listener for HBONE",
        }
    }
}

fn conditions(gateway: &Gateway, listener: &Listener, unready: Option<&str>) -> Vec<Statement> {
    let refusal = Refusal::of(gateway, listener);
    let accepted = match refusal {
        None => Statement::new("Accepted", true, "Accepted", ""),
        Some(refusal) => Statement::new("Accepted", false, refusal.reason(), refusal.message()),
    };
    let conflict = refusal.and_then(|refusal| Some((refusal.conflict()?, refusal.message())));
    let conflicted = match conflict {
        Some((reason, message)) => Statement::new("Conflicted", true, reason, message),
        None => Statement::new("Conflicted", false, "NoConflicts", ""),
    };
    let resolved = if listener.kinds.is_empty() {
        Statement::new("ResolvedRefs", true, "ResolvedRefs", "")
    } else {
        let message = "allowedRoutes.kinds means nothing to a waypoint: routes have Services as parents";
        Statement::new("ResolvedRefs", false, "InvalidRouteKinds", message)
    };
    let programmed = match (refusal, unready) {
        (None, None) => Statement::new("Programmed", true, "Programmed", ""),
        (None, Some(why)) => Statement::new("Programmed", false, "Pending", why),
        (Some(refusal), _) => Statement::new("Programmed", false, "Invalid", refusal.message()),
    };
    vec![accepted, conflicted, resolved, programmed]
}
