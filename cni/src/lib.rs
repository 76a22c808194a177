//! Enrolment of pods on a Kubernetes node: the chained CNI plugin, which enrols a pod before its containers
//! start, and the node agent, which installs the plugin and enrols running pods.
//!
//! Entry points: [`plugin::run`] (the binary `ambit-cni`) and [`agent::run`] (the binary `ambit-node`). The
//! agent writes two files that the plugin reads, [`entry::Entry`] and [`credential::Credential`], and serves
//! its requests (`request`).

#![warn(missing_docs)]

pub mod agent;
pub mod credential;
pub mod entry;
pub mod plugin;
mod request;
