//! How many checks of a suite passed and failed.

/// What came out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    pub passed: usize,
    pub failed: usize,
}
