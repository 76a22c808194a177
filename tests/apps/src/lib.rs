//! Programs that run in a lab's pods: `ambit-semantics` tries what applications rely on, `shop` plays a small
//! shop.
//!
//! They do not know of a mesh.

pub mod semantics;
mod sys;
