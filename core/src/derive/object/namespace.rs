//! Namespaces: their labels enrol pods, and they say what their services leave open ([`Namespace`]).

use super::key::Metadata;
use super::service::TrafficDistribution;

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata`.
    pub metadata: Metadata,
    /// Istio's annotation: for services that say nothing themselves.
    pub traffic_distribution: TrafficDistribution,
}
