//! The chained CNI plugin. It makes no network: behind the plugins that do, it asks the API server whether
//! the pod is to be in the mesh, and if so has the node's ztunnel enrol the pod's network namespace before
//! any container starts.
//!
//! Way in: [`run`]. It fails closed: without an answer a pod does not start, and the kubelet tries again. A
//! pod that is not to be in the mesh never waits for ztunnel.

mod add;
mod api;
mod failure;
mod log;
mod protocol;

pub use failure::{Code, Failure};
pub use protocol::Environment;

/// The longest configuration that is read.
pub const MAX_INPUT: u64 = 4 << 20;

/// What goes to standard output, and whether the exit status is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub output: Vec<u8>,
    pub success: bool,
}

impl Answer {
    /// Standard input could not be read.
    pub fn unreadable(error: &std::io::Error) -> Self {
        let failure = Failure::new(Code::Io, "reading standard input", error.to_string());
        Self::failed(&failure, protocol::NEWEST)
    }

    fn failed(failure: &Failure, version: &str) -> Self {
        Self { output: failure.to_json(version), success: false }
    }
}

/// Does what the runtime asks.
pub fn run(environment: &Environment, input: &[u8]) -> Answer {
    let configuration = match protocol::Configuration::parse(input) {
        Ok(configuration) => configuration,
        Err(failure) => return Answer::failed(&failure, protocol::NEWEST),
    };
    let asked = Some(configuration.cni_version.as_str()).filter(|version| !version.is_empty());
    match execute(environment, &configuration, input) {
        Ok(output) => Answer { output, success: true },
        Err(failure) => Answer::failed(&failure, asked.unwrap_or(protocol::NEWEST)),
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
        // What was enrolled is released by the node's agent, which sees the pod go. Nothing of ours lies in
        // the namespace, so there is nothing to find missing.
        "CHECK" => configuration.previous().map(|_| Vec::new()),
        "DEL" | "GC" => Ok(Vec::new()),
        // Without ztunnel only pods of the mesh cannot start, and ztunnel itself is started through here: a
        // node that called its network down for want of it would never get it.
        "STATUS" => protocol::entry(input).map(|_| Vec::new()),
        other => {
            let details = format!("CNI_COMMAND {other:?} is not a command");
            Err(Failure::new(Code::InvalidEnvironment, "invalid environment", details))
        }
    }
}

fn versions(asked: &str) -> Vec<u8> {
    let spoken = if asked.is_empty() { protocol::NEWEST } else { asked };
    let document = serde_json::json!({ "cniVersion": spoken, "supportedVersions": protocol::VERSIONS });
    document.to_string().into_bytes()
}

#[cfg(test)]
mod fake_api;
#[cfg(test)]
mod tests;
