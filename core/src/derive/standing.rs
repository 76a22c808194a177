//! What the status of a Gateway API object says, beside our own [`Condition`](super::Condition)s:
//! [`Standing`].

use super::object::ParentRef;

/// The class of the Gateways that are waypoints.
pub const WAYPOINT_CLASS: &str = "ambit-waypoint";

/// The conditions that Gateway API wants of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Of a Gateway.
    Gateway {
        /// The conditions.
        conditions: Vec<Statement>,
        /// Where it is reached: host names and addresses.
        addresses: Vec<String>,
        /// Of each listener, in the Gateway's order.
        listeners: Vec<ListenerStanding>,
    },
    /// Of a route: one for each parent that is the mesh's.
    Route(Vec<ParentStanding>),
}

/// The conditions of a route at one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentStanding {
    /// The parent as it is written.
    pub parent: ParentRef,
    /// The conditions.
    pub conditions: Vec<Statement>,
}

/// The conditions of a listener. A waypoint's carries no route of its own (routes have Services as parents),
/// so no kind is supported there and none is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerStanding {
    /// Its name.
    pub name: String,
    /// The conditions.
    pub conditions: Vec<Statement>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Its type, as Gateway API names it.
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// The reason, as Gateway API names it.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Statement {
    pub(super) fn new(
        kind: &'static str,
        holds: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, holds, reason, message: message.into() }
    }
}
