//! What puts a Kubernetes node's pods into the mesh: the chained CNI plugin, which enrols a pod before its
//! containers start, and the node agent, which installs the plugin and enrols pods that already run.
//!
//! Ways in: [`plugin::run`] (the binary `ambit-cni`) and [`agent::run`] (the binary `ambit-node`). They meet
//! in two files that the agent writes and the plugin reads: [`entry::Entry`] and [`credential::Credential`].

pub mod agent;
pub mod credential;
pub mod entry;
pub mod plugin;

pub(crate) use ambit_core::chain;
