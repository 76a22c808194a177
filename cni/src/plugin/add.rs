//! ADD: is this pod to be in the mesh, and if so, into it.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use ambit_core::enrolment::{self, Subject};
use ambit_enrol::{Pod, SourceName};

use super::api::{Api, Object};
use super::failure::{Code, Failure};
use super::log;
use super::protocol::{self, Configuration, Environment, Sandbox};
use crate::entry::Entry;

/// For ztunnel's answer. With three questions at the API server this stays well below the two minutes that
/// kubelets give a sandbox.
const PATIENCE: Duration = Duration::from_secs(25);
/// Who we are to ztunnel.
const SOURCE: &str = "cni";
/// On the API's image of a pod that a kubelet started from a file of its own.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What was found about a pod.
enum Membership {
    /// In the mesh, with the uid the API has for it.
    Desired {
        uid: String,
    },
    Outside,
}

/// The result of the plugins before this one, once the pod may start.
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
    let who = format!("ADD {}/{}", sandbox.namespace, sandbox.name);
    let took = started.elapsed().as_millis();
    match &result {
        Ok(Membership::Desired { .. }) => {
            log::line(entry.log_file.as_deref(), &format!("{who}: enrolled, {took} ms"));
        }
        Ok(Membership::Outside) => {}
        Err(failure) => {
            log::line(entry.log_file.as_deref(), &format!("{who}: refused after {took} ms: {failure}"));
        }
    }
    result.map(|_| previous.into())
}

fn join(entry: &Entry, sandbox: &Sandbox, path: &std::path::Path) -> Result<Membership, Failure> {
    let api = Api::open(&entry.kubeconfig)?;
    let membership = membership(&api, sandbox)?;
    let Membership::Desired { uid } = &membership else { return Ok(membership) };
    enrol(entry, sandbox, path)?;
    let annotation = (enrolment::REDIRECTION, enrolment::REDIRECTION_ENABLED);
    api.annotate((&sandbox.namespace, &sandbox.name, uid), annotation)?;
    Ok(membership)
}

/// Asks the API server: what the runtime says of a pod does not include its labels.
fn membership(api: &Api, sandbox: &Sandbox) -> Result<Membership, Failure> {
    let pod = api.pod(&sandbox.namespace, &sandbox.name)?;
    // Its uid is not the one the runtime knows, and it cannot have a service account.
    if pod.metadata.annotations.contains_key(MIRROR) {
        return Ok(Membership::Outside);
    }
    if let Some(uid) = sandbox.uid.as_ref().filter(|uid| **uid != pod.metadata.uid) {
        let details =
            format!("the sandbox is of the pod with uid {uid}, the API has {} now", pod.metadata.uid);
        return Err(Failure::new(Code::TryAgainLater, "another pod has taken this one's name", details));
    }
    let namespace = api.namespace(&sandbox.namespace)?;
    if judge(&pod, &namespace, sandbox) {
        Ok(Membership::Desired { uid: pod.metadata.uid })
    } else {
        Ok(Membership::Outside)
    }
}

fn judge(pod: &Object, namespace: &Object, sandbox: &Sandbox) -> bool {
    let subject = Subject {
        namespace: &sandbox.namespace,
        namespace_labels: Some(&namespace.metadata.labels),
        pod_labels: Some(&pod.metadata.labels),
        host_network: pod.spec.host_network,
        finished: matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"),
        // The mesh's own namespace is among those that are excluded.
        system_namespace: "",
    };
    subject.judge().is_desired()
}

fn enrol(entry: &Entry, sandbox: &Sandbox, path: &std::path::Path) -> Result<(), Failure> {
    let io =
        |message: String| move |error: std::io::Error| Failure::new(Code::Io, message, error.to_string());
    let namespace = File::open(path).map_err(io(format!("opening network namespace {}", path.display())))?;
    let source: SourceName = SOURCE
        .parse()
        .map_err(|error: ambit_enrol::Error| Failure::new(Code::Io, "enrolling", error.to_string()))?;
    let pod = Pod {
        uid: format!("{}//Pod/{}/{}", entry.cluster, sandbox.namespace, sandbox.name),
        namespace: sandbox.namespace.clone(),
        name: sandbox.name.clone(),
    };
    ambit_enrol::enrol_once(&entry.socket, &source, &pod, namespace.as_fd(), PATIENCE).map_err(|error| {
        let code = match &error {
            ambit_enrol::Error::Refused { .. } => Code::Refused,
            _ => Code::TryAgainLater,
        };
        Failure::new(code, "the node's ztunnel did not enrol the pod", crate::chain(&error))
    })
}
