//! What was made of a route object: [`Compiled`].

use std::sync::Arc;

use super::super::object::ObjectKey;
use super::backend::Unresolved;
use crate::route::Route;

/// What a waypoint runs of a route object, whoever its parents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::derive) struct Compiled {
    /// `None` where nothing of it can be run.
    pub(super) route: Option<Arc<Route>>,
    /// Rules that were left out, and why.
    pub(super) dropped: Vec<String>,
    pub(super) incompatible: bool,
    /// References that lead nowhere.
    pub(super) unresolved: Vec<Unresolved>,
    /// What else its author should know, by field.
    pub(super) notes: Vec<(String, String)>,
}

/// A compiled route by its object's key.
pub(in crate::derive) type Lookup<'a> = &'a dyn Fn(&ObjectKey) -> Option<&'a Compiled>;
