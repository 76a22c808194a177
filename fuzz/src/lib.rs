//! Code shared by the fuzz targets.

#![warn(missing_docs)]

pub mod reference;
