//! The links under direct connections. A direct connection is plain TCP, so no other pod may read or send on
//! the links of both: [`classify`] says of what kind a pod's link is, [`Link::carries`] whether direct
//! connections between two pods may take theirs.

use std::fmt;

/// What was found of a pod's link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The kinds of the pod's interfaces that are up, loopback left out (`veth`, `macvlan`, …).
    pub interfaces: Vec<String>,
    /// Whether the pod has an IPv6 address beyond its link.
    pub ipv6: bool,
    /// The other end of its interface; none if it is not in the node's network namespace.
    pub node_end: Option<NodeEnd>,
}

/// The node's end of a pod's veth pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeEnd {
    /// The kind of the interface that it is a port of (`bridge`, `openvswitch`, …); none if it is routed.
    pub master: Option<String>,
    /// Whether the node drops IPv4 packets that come from the pod with an address that is not routed to it.
    pub strict_reverse_path: bool,
    /// Programs or filters of others on its traffic: they may redirect it.
    pub foreign: Vec<String>,
}

/// The kind of a pod's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// No other pod can send or receive as this one: routed, with reverse-path filtering.
    Isolated,
    /// Others can: a port of a bridge, or routed without a check of source addresses. Programs at the node's
    /// end carry direct connections past them.
    Shared,
    /// The operator declares that no pod on the node does.
    Trusted,
    /// Not known to be one of these.
    Unknown(Unknown),
}

/// Why a link is of an unknown kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It has not been, or could not be, looked at.
    Unread(String),
    /// The pod has not exactly one interface.
    Interfaces(usize),
    /// The pod's interface is of another kind than veth.
    Kind(String),
    /// The other end is not in the node's network namespace.
    Elsewhere,
    /// The node's end is a port of something else than a bridge.
    Master(String),
    /// Programs or filters of others are on it.
    Foreign(Vec<String>),
    /// The programs that a shared link needs are not attached.
    Unattached(String),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread(why) => write!(f, "the link could not be read: {why}"),
            Self::Interfaces(0) => f.write_str("the pod has no interface that is up"),
            Self::Interfaces(count) => write!(f, "the pod has {count} interfaces"),
            Self::Kind(kind) if kind.is_empty() => f.write_str("the pod's interface is not a veth"),
            Self::Kind(kind) => write!(f, "the pod's interface is of kind {kind}, not veth"),
            Self::Elsewhere => f.write_str("the veth's other end is not in the node's network namespace"),
            Self::Master(kind) => write!(f, "the node's end is a port of kind {kind}, not bridge"),
            Self::Foreign(found) => write!(f, "other programs are on the node's end: {}", found.join(", ")),
            Self::Unattached(why) => write!(f, "the programs for a shared link are not attached: {why}"),
        }
    }
}

impl Link {
    /// The name of its kind, in metrics and views.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
            Self::Shared => "shared",
            Self::Trusted => "trusted",
            Self::Unknown(_) => "unknown",
        }
    }

    /// The names of all kinds.
    pub const NAMES: [&'static str; 4] = ["isolated", "shared", "trusted", "unknown"];

    /// Whether open direct connections over this link and another pod's must end. A link that could not be
    /// read forbids only new ones: it may be as it was.
    pub fn forbids(&self, other: &Self) -> bool {
        let unread = |link: &Self| matches!(link, Self::Unknown(Unknown::Unread(_)));
        !unread(self) && !unread(other) && !self.carries(other)
    }

    /// Whether direct connections may go over this link and another pod's. Both must be of one kind: the
    /// programs for shared links see a connection only if they are on both.
    pub fn carries(&self, other: &Self) -> bool {
        !matches!(self, Self::Unknown(_)) && self.name() == other.name()
    }
}

/// The kind of a link. `trusted`: the operator declares the node's links trusted.
pub fn classify(facts: &Facts, trusted: bool) -> Link {
    if trusted {
        return Link::Trusted;
    }
    let [kind] = &facts.interfaces[..] else {
        return Link::Unknown(Unknown::Interfaces(facts.interfaces.len()));
    };
    if kind != "veth" {
        return Link::Unknown(Unknown::Kind(kind.clone()));
    }
    let Some(end) = &facts.node_end else { return Link::Unknown(Unknown::Elsewhere) };
    if !end.foreign.is_empty() {
        return Link::Unknown(Unknown::Foreign(end.foreign.clone()));
    }
    match end.master.as_deref() {
        // The kernel has no reverse-path filter for IPv6.
        None if end.strict_reverse_path && !facts.ipv6 => Link::Isolated,
        None | Some("bridge") => Link::Shared,
        Some(other) => Link::Unknown(Unknown::Master(other.to_owned())),
    }
}

#[cfg(test)]
mod tests;
