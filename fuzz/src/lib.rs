//! What the targets share: a slow reference of policy.

pub mod reference;
