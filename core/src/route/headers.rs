//! Changes of a request's or response's headers: [`HeaderChange::apply`].

use http::{HeaderMap, HeaderName, HeaderValue};

/// What a header-modifier filter does: sets, adds, then removes, as Gateway API lists them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChange {
    /// These headers have exactly this value afterwards.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// These values stand beside those that are there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// These headers are gone afterwards.
    pub remove: Vec<HeaderName>,
}

impl HeaderChange {
    /// Changes the headers.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}
