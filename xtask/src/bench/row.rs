//! One figure of a report: its median, its spread and its ratio to plain.

use serde::Serialize;

/// Least, median, greatest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

/// One row of `report.json`.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) system: &'static str,
    pub(super) metric: &'static str,
    /// The median.
    pub(super) value: f64,
    pub(super) unit: &'static str,
    pub(super) min: f64,
    pub(super) max: f64,
    /// (max − min) ÷ median.
    pub(super) spread: f64,
    pub(super) better: &'static str,
    /// To plain traffic of its kind: between nodes, or on one node.
    pub(super) ratio_to_plain: Option<Spread>,
}
