//! The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler on a machine of their
//! own.

use std::path::Path;
use std::time::Duration;

use ambit_harness::within;
use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::network::{self, Subnet};
use crate::parts::Parts;
use crate::pki::{Pki, Subject};

/// A program of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    Etcd,
    Apiserver,
    ControllerManager,
    Scheduler,
}

impl Part {
    /// In the order in which they need each other.
    pub const ALL: [Self; 4] = [Self::Etcd, Self::Apiserver, Self::ControllerManager, Self::Scheduler];

    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }
}

/// How long a program is given to end before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// Generous: it only costs time when something is broken.
const READY: Duration = Duration::from_mins(5);

/// The control plane's certificates, and the administrator's kubeconfig.
pub(crate) fn certificates(pki: &Pki, subnet: Subnet) -> Result<()> {
    let server = server(subnet);
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    let addresses = network::apiserver_addresses(subnet);
    pki.issue(
        "apiserver",
        &Subject { user: "kube-apiserver", group: None, names: &names, addresses: &addresses },
    )?;
    pki.client("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"), &server)?;
    pki.client("admin", "admin", Some("system:masters"), &server)?;
    pki.client("kube-controller-manager", "system:kube-controller-manager", None, &server)?;
    pki.client("kube-scheduler", "system:kube-scheduler", None, &server)?;
    Ok(())
}

pub(crate) fn server(subnet: Subnet) -> String {
    format!("https://{}:6443", subnet.control().0)
}

/// Starts one program; the apiserver and etcd are ready when this returns.
pub(crate) fn start(machine: &Machine, parts: &Parts, pki: &Path, subnet: Subnet, part: Part) -> Result<()> {
    if machine.service(part.program())?.is_some_and(|process| process.alive()) {
        return Ok(());
    }
    let arguments = match part {
        Part::Etcd => etcd(&machine.spec.folder),
        Part::Apiserver => apiserver(pki, subnet),
        Part::ControllerManager => controller_manager(pki),
        Part::Scheduler => scheduler(pki),
    };
    let program = parts.program(part.program()).display().to_string();
    let command: Vec<String> = std::iter::once(program).chain(arguments).collect();
    machine.serve(part.program(), &command, &parts.bin())?;
    ready(machine, parts, pki, part)
}

/// Ends one program.
pub(crate) fn stop(machine: &Machine, part: Part) -> Result<()> {
    match machine.service(part.program())? {
        Some(process) => process.end(GRACE),
        None => Ok(()),
    }
}

fn ready(machine: &Machine, parts: &Parts, pki: &Path, part: Part) -> Result<()> {
    let kubectl = parts.program("kubectl").display().to_string();
    let config = pki.join("admin.kubeconfig").display().to_string();
    within(READY, &format!("{} is ready", part.program()), || {
        if !machine.service(part.program())?.is_some_and(|process| process.alive()) {
            return Ok(Err(anyhow!("{} has ended:\n{}", part.program(), machine.last_words(part.program()))));
        }
        if part == Part::Apiserver {
            let arguments = ["--kubeconfig", &config, "get", "--raw", "/readyz"];
            network::done(&mut machine.run(&kubectl, &arguments))?;
        }
        // The API server waits for etcd; nothing waits for the others.
        Ok(Ok(()))
    })?
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn etcd(folder: &Path) -> Vec<String> {
    let mut arguments = words(&[
        "--name=ambit",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=ambit=http://127.0.0.1:2380",
        // A single member has no peers to wait for: fewer ticks.
        "--heartbeat-interval=500",
        "--election-timeout=5000",
        // What a power cut would lose is no loss here.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]);
    arguments.push(format!("--data-dir={}", folder.join("etcd").display()));
    arguments
}

fn apiserver(pki: &Path, subnet: Subnet) -> Vec<String> {
    let file = |name: &str| pki.join(name).display().to_string();
    let mut arguments = words(&[
        "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        // Webhooks are called at their pods: there is no kube-proxy on this machine.
        "--enable-aggregator-routing=true",
        "--profiling=false",
    ]);
    arguments.push(format!("--advertise-address={}", subnet.control().0));
    arguments.push(format!("--service-cluster-ip-range={}", network::SERVICES));
    for (flag, name) in [
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("kubelet-certificate-authority", "ca.crt"),
        ("kubelet-client-certificate", "kubelet-client.crt"),
        ("kubelet-client-key", "kubelet-client.key"),
        ("service-account-key-file", "tokens.pub"),
        ("service-account-signing-key-file", "tokens.key"),
    ] {
        arguments.push(format!("--{flag}={}", file(name)));
    }
    arguments
}

fn controller_manager(pki: &Path) -> Vec<String> {
    let file = |name: &str| pki.join(name).display().to_string();
    let mut arguments = words(&[
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--profiling=false",
        // A dead node shows soon.
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=12s",
    ]);
    for (flag, name) in [
        ("kubeconfig", "kube-controller-manager.kubeconfig"),
        ("authentication-kubeconfig", "kube-controller-manager.kubeconfig"),
        ("authorization-kubeconfig", "kube-controller-manager.kubeconfig"),
        ("root-ca-file", "ca.crt"),
        ("cluster-signing-cert-file", "ca.crt"),
        ("cluster-signing-key-file", "ca.key"),
        ("service-account-private-key-file", "tokens.key"),
    ] {
        arguments.push(format!("--{flag}={}", file(name)));
    }
    arguments
}

fn scheduler(pki: &Path) -> Vec<String> {
    let config = pki.join("kube-scheduler.kubeconfig").display().to_string();
    let mut arguments = words(&["--leader-elect=false", "--profiling=false"]);
    for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        arguments.push(format!("--{flag}={config}"));
    }
    arguments
}
