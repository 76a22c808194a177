//! [`Rejected`].

/// A resource that was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name on the wire: a workload's uid, `<namespace>/<hostname>`, `<namespace>/<policy>`.
    pub resource: String,
    /// The field and what is wrong with it.
    pub reason: String,
}
