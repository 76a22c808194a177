//! The model as messages, and back. Encoding cannot fail. A decoding error names the resource and the field.

mod common;
mod extension;
mod policy;
mod routes;
mod service;
#[cfg(test)]
mod tests;
mod workload;

pub use policy::{decode_authorization, encode_authorization};
pub use routes::{decode_routes, encode_routes};
pub use service::{SERVICE_EXTENSION, decode_service, encode_service};
pub use workload::{WORKLOAD_EXTENSION, decode_workload, encode_workload};

/// Why a message cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {field}: {problem}")]
pub struct DecodeError {
    /// The resource's name.
    pub resource: String,
    /// The path of the field, for example `rules[0].clauses[0].matches[1].source_ips[0]`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// A [`DecodeError`] without its resource. Callers prefix the field.
#[derive(Debug)]
struct Problem {
    field: String,
    problem: String,
}

impl Problem {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// Prefixes the field with that of the outer message.
    fn within(self, outer: &str) -> Self {
        Self { field: format!("{outer}.{}", self.field), problem: self.problem }
    }

    fn of(self, resource: impl Into<String>) -> DecodeError {
        DecodeError { resource: resource.into(), field: self.field, problem: self.problem }
    }
}
