//! What puts a Kubernetes node's pods into the mesh: the chained CNI plugin, which enrols a pod before its containers
//! start, and the node agent, which installs the plugin and enrols pods that already run.
//!
//! Ways in: [`plugin::run`] (the binary `ambit-cni`) and [`agent::run`] (the binary `ambit-node`). They meet in two
//! files that the agent writes and the plugin reads: [`entry::Entry`] and [`credential::Credential`].

pub mod agent;
pub mod credential;
pub mod entry;
pub mod plugin;

/// An error with all of its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
