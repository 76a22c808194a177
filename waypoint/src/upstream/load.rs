//! How many requests an endpoint has: [`Load`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A request that an endpoint has; it counts until this is dropped.
#[derive(Debug)]
pub(super) struct Load(Arc<AtomicUsize>);

impl Load {
    pub(super) fn begin(requests: Arc<AtomicUsize>) -> Self {
        requests.fetch_add(1, Ordering::Relaxed);
        Self(requests)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
