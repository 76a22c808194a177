//! A table of rows within one test: every row runs, every failure is shown, and the test fails if one did.

use anyhow::Result;

/// Collects how the rows of a table went.
#[derive(Debug, Default)]
pub struct Rows {
    passed: usize,
    failed: Vec<String>,
}

impl Rows {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a row and notes how it went.
    pub fn row(&mut self, name: &str, run: impl FnOnce() -> Result<()>) {
        match run() {
            Ok(()) => self.passed += 1,
            Err(error) => {
                println!("FAILED {name}: {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Fails the test if a row failed, or if there was none.
    ///
    /// # Panics
    /// That is how a test fails.
    pub fn finish(self) {
        println!("{} rows passed, {} failed", self.passed, self.failed.len());
        assert!(self.failed.is_empty(), "failed: {}", self.failed.join(", "));
        assert!(self.passed > 0, "a table without rows proves nothing");
    }
}
