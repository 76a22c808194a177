//! The state of an object: [`Condition`].

use super::object::ObjectKey;

/// Whether an object is in force, and what its author should know, for its status or a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The object.
    pub object: ObjectKey,
    /// The path of the field, if it is about one (`spec.rules[0].from[1].source.serviceAccounts`).
    pub field: Option<String>,
    /// Whether the object is in force, with the restriction of the message if there is one. A policy that is
    /// not accepted refuses everything that it selects, unless the message says that it is not enforced.
    pub accepted: bool,
    /// Empty if the object is in force as written.
    pub message: String,
}

impl Condition {
    /// In force as written.
    pub(super) fn accepted(object: ObjectKey) -> Self {
        Self { object, field: None, accepted: true, message: String::new() }
    }
}
