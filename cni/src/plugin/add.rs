//! ADD: enrols the pod if it should be in the mesh.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ambit_core::enrolment::{Account, Candidate, Eligibility};
use ambit_enrol::{Pod, SourceName};

use super::api::{Api, Object};
use super::failure::{Code, Failure};
use super::log;
use super::protocol::{self, Configuration, Environment, Sandbox};
use crate::entry::Entry;
use crate::request::{self, Request, SOCKET};

/// The deadline of ztunnel's answer. With two requests to the API server and one to the agent this stays well
/// below the two minutes that kubelets allow for a sandbox.
const DEADLINE: Duration = Duration::from_secs(25);
/// The deadline of the agent's answer.
const AGENT_DEADLINE: Duration = Duration::from_secs(25);
/// The deadline for telling the agent that the credential does not serve.
const NOTICE: Duration = Duration::from_secs(1);
/// The plugin's name as a source of enrolments.
pub(super) const SOURCE: &str = "cni";

/// Whether a pod should be in the mesh.
enum Membership {
    /// It should; its uid at the API server.
    Desired { uid: String },
    /// It should not; why, if it is labelled.
    Outside { reason: Option<&'static str> },
}

/// Enrols the pod if it should be in the mesh; returns the result of the plugins before this one.
pub(super) fn add(
    environment: &Environment,
    configuration: &Configuration,
    entry: &Entry,
) -> Result<Vec<u8>, Failure> {
    let previous = configuration.previous()?;
    for name in ["CNI_CONTAINERID", "CNI_IFNAME"] {
        protocol::variable(environment, name)?;
    }
    let path = protocol::network_namespace(environment)?;
    let Some(sandbox) = Sandbox::read(environment)? else { return Ok(previous.into()) };
    if entry.excluded_namespaces.contains(&sandbox.namespace) {
        return Ok(previous.into());
    }
    let started = Instant::now();
    let result = join(entry, &sandbox, &path);
    let subject = format!("ADD {}/{}", sandbox.namespace, sandbox.name);
    let took = started.elapsed().as_millis();
    match &result {
        Ok(Membership::Desired { .. }) => {
            log::line(entry.log_file.as_deref(), &format!("{subject}: enrolled in {took} ms"));
        }
        Ok(Membership::Outside { reason: None }) => {}
        Ok(Membership::Outside { reason: Some(reason) }) => {
            log::line(entry.log_file.as_deref(), &format!("{subject}: not enrolled: {reason}"));
        }
        Err(failure) => {
            log::line(entry.log_file.as_deref(), &format!("{subject}: failed after {took} ms: {failure}"));
            if failure.credential {
                // The kubelet tries again; without an agent there is nobody to tell.
                _ = request::ask(&agent_socket(entry), &Request::CredentialRefused, NOTICE);
            }
        }
    }
    result.map(|_| previous.into())
}

fn join(entry: &Entry, sandbox: &Sandbox, path: &std::path::Path) -> Result<Membership, Failure> {
    let api = Api::open(&entry.kubeconfig)?;
    let membership = membership(&api, sandbox)?;
    let Membership::Desired { uid } = &membership else { return Ok(membership) };
    enrol(entry, sandbox, path)?;
    announce(entry, sandbox, uid)?;
    Ok(membership)
}

/// Has the agent annotate the pod, so that its peers know before its containers start.
fn announce(entry: &Entry, sandbox: &Sandbox, uid: &str) -> Result<(), Failure> {
    let request = Request::Enrolled {
        namespace: sandbox.namespace.clone(),
        name: sandbox.name.clone(),
        uid: uid.to_owned(),
    };
    request::ask(&agent_socket(entry), &request, AGENT_DEADLINE).map_err(|error| {
        let message = "the node's agent did not annotate the pod";
        Failure::new(Code::TryAgainLater, message, ambit_core::chain(&error))
    })
}

fn agent_socket(entry: &Entry) -> PathBuf {
    entry.socket.with_file_name(SOCKET)
}

/// Asks the API server: the runtime does not pass on a pod's labels.
fn membership(api: &Api, sandbox: &Sandbox) -> Result<Membership, Failure> {
    let pod = api.pod(&sandbox.namespace, &sandbox.name)?;
    let account = Account::of(&pod.spec.service_account_name, &pod.metadata.annotations);
    // A static pod's object has another uid than its processes.
    let other = |uid: &&String| account != Account::Static && **uid != pod.metadata.uid;
    if let Some(uid) = sandbox.uid.as_ref().filter(other) {
        let details = format!("the sandbox is of uid {uid}, the API server has {}", pod.metadata.uid);
        return Err(Failure::new(Code::TryAgainLater, "another pod has this name now", details));
    }
    let namespace = api.namespace(&sandbox.namespace)?;
    Ok(match judge(&pod, &namespace, sandbox, account) {
        Eligibility::Desired => Membership::Desired { uid: pod.metadata.uid },
        other => Membership::Outside { reason: other.not_captured() },
    })
}

fn judge(pod: &Object, namespace: &Object, sandbox: &Sandbox, account: Account) -> Eligibility {
    let subject = Candidate {
        namespace: &sandbox.namespace,
        namespace_labels: Some(&namespace.metadata.labels),
        pod_labels: Some(&pod.metadata.labels),
        account,
        host_network: pod.spec.host_network,
        finished: matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"),
        // The mesh's own namespace is among the excluded ones.
        system_namespace: "",
    };
    subject.evaluate()
}

fn enrol(entry: &Entry, sandbox: &Sandbox, path: &std::path::Path) -> Result<(), Failure> {
    let io =
        |message: String| move |error: std::io::Error| Failure::new(Code::Io, message, error.to_string());
    let namespace =
        File::open(path).map_err(io(format!("failed to open network namespace {}", path.display())))?;
    let source: SourceName = SOURCE
        .parse()
        .map_err(|error: ambit_enrol::Error| Failure::new(Code::Io, "failed to enrol", error.to_string()))?;
    let pod = Pod {
        uid: format!("{}//Pod/{}/{}", entry.cluster, sandbox.namespace, sandbox.name),
        namespace: sandbox.namespace.clone(),
        name: sandbox.name.clone(),
    };
    ambit_enrol::enrol_once(&entry.socket, &source, &pod, namespace.as_fd(), DEADLINE).map_err(|error| {
        let code = match &error {
            ambit_enrol::Error::Refused { .. } => Code::Refused,
            _ => Code::TryAgainLater,
        };
        Failure::new(code, "the node's ztunnel did not enrol the pod", ambit_core::chain(&error))
    })
}
