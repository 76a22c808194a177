//! The head of a request as it is sent on: [`Head`].

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method};

use crate::failure::Failure;

/// The head of a request as it is sent on; who it goes to is not in it.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    /// What the endpoint gets as `Host`.
    pub(crate) authority: Option<Authority>,
    pub(crate) headers: HeaderMap,
}

/// Another path with the same query.
pub(crate) fn with_path(asked: &PathAndQuery, path: &str) -> Result<PathAndQuery, Failure> {
    let text = match asked.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    PathAndQuery::try_from(text).map_err(|_| Failure::BadRequest("path is not valid"))
}
