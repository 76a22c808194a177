//! From a folder of files to objects.
//!
//! [`folder`] lists and reads, [`tracker`] decides which files have settled in a new state (pure),
//! [`catalog`] turns their texts into object events and problems (pure), [`saved`] keeps last good versions
//! across restarts and [`programmed`] which waypoints were ready once, [`reconcile`] makes one pass with all
//! of them, and [`watch`] decides when.

pub(crate) mod catalog;
mod folder;
mod programmed;
pub(crate) mod reconcile;
mod saved;
mod tracker;
pub(crate) mod watch;

use std::sync::Arc;

/// A file, by its path relative to the folder. Files are ordered by it.
pub(crate) type FileName = Arc<str>;
