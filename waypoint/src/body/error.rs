//! What a body may break off with: [`BoxError`].

/// Any error of a body, the client's or an endpoint's.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
