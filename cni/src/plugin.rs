//! The chained CNI plugin. It creates no network: after the plugins that do, it asks the API server whether
//! the pod should be in the mesh, and if so has the node's ztunnel enrol the pod's network namespace before
//! any container starts.
//!
//! Entry point: [`run`]. It fails closed: without an answer a pod does not start, and the kubelet tries
//! again. A pod that should not be in the mesh never waits for ztunnel.

mod add;
mod api;
mod del;
mod failure;
mod log;
mod protocol;

pub use failure::{Code, Failure};
pub use protocol::Environment;

/// The longest configuration that is read.
pub const MAX_INPUT: u64 = 4 << 20;

/// The result for the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For standard output.
    pub output: Vec<u8>,
    /// Whether the exit status is 0.
    pub success: bool,
}

impl Answer {
    /// Standard input could not be read.
    pub fn unreadable(error: &std::io::Error) -> Self {
        let failure = Failure::new(Code::Io, "failed to read standard input", error.to_string());
        Self::failed(&failure, protocol::NEWEST)
    }

    fn failed(failure: &Failure, version: &str) -> Self {
        Self { output: failure.to_json(version), success: false }
    }
}

/// Executes the runtime's command.
pub fn run(environment: &Environment, input: &[u8]) -> Answer {
    let configuration = match protocol::Configuration::parse(input) {
        Ok(configuration) => configuration,
        Err(failure) => return Answer::failed(&failure, protocol::NEWEST),
    };
    let version = Some(configuration.cni_version.as_str()).filter(|version| !version.is_empty());
    match execute(environment, &configuration, input) {
        Ok(output) => Answer { output, success: true },
        Err(failure) => Answer::failed(&failure, version.unwrap_or(protocol::NEWEST)),
    }
}

fn execute(
    environment: &Environment,
    configuration: &protocol::Configuration,
    input: &[u8],
) -> Result<Vec<u8>, Failure> {
    let command = protocol::variable(environment, "CNI_COMMAND")?;
    if command == "VERSION" {
        return Ok(versions(&configuration.cni_version));
    }
    configuration.check_version()?;
    match command {
        "ADD" => add::add(environment, configuration, &protocol::entry(input)?),
        // The node's agent releases the pod when it is deleted. The plugin leaves nothing in the namespace,
        // so there is nothing to check.
        "CHECK" => configuration.previous().map(|_| Vec::new()),
        "DEL" => {
            del::del(environment, input);
            Ok(Vec::new())
        }
        "GC" => Ok(Vec::new()),
        // Without ztunnel only pods of the mesh cannot start. ztunnel's own pod is started through this
        // plugin: a node that reported its network as not ready would never get it.
        "STATUS" => protocol::entry(input).map(|_| Vec::new()),
        other => {
            let details = format!("CNI_COMMAND {other:?} is not a command");
            Err(Failure::new(Code::InvalidEnvironment, "invalid environment", details))
        }
    }
}

fn versions(requested: &str) -> Vec<u8> {
    let version = if requested.is_empty() { protocol::NEWEST } else { requested };
    let document = serde_json::json!({ "cniVersion": version, "supportedVersions": protocol::VERSIONS });
    document.to_string().into_bytes()
}

#[cfg(test)]
mod tests;
