//! Programs that run in a lab's pods: `ambit-semantics` tries what applications rely on, `shop` plays a small
//! shop.
//!
//! They know nothing of a mesh.

pub mod semantics;
mod sys;
