//! The client of ztunnel's enrolment socket: a thread that executes jobs in order, since each call waits for
//! an answer.
//!
//! Queued jobs are taken together: one pass through the node's processes serves them all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use ambit_enrol::{Client, Error, Pod, SourceName, release_once};
use ambit_kube::error::chain;
use tokio::sync::mpsc::UnboundedSender;

use super::namespaces;
use super::pod::{PodKey, Seen};
use super::step::Outcome;

/// The deadline of each answer, and of ztunnel's start. Longer than ztunnel waits for its first
/// configuration.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// The source of pods that the plugin enrolled.
const PLUGIN_SOURCE: &str = "cni";
/// The source of pods that this agent enrols.
const OWN_SOURCE: &str = "node-agent";

/// Where ztunnel's socket and the pods' processes are.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) socket: PathBuf,
    pub(crate) proc: PathBuf,
    pub(crate) cluster: String,
    pub(crate) deadline: Duration,
}

/// A job for the thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Enrol a pod.
    Enrol { key: PodKey, uid: String },
    /// Keep a pod in ztunnel, if it has it.
    Keep { key: PodKey },
    /// Release a pod that this agent enrolled.
    Release { key: PodKey },
    /// Release a pod that the plugin enrolled.
    ReleasePlugins { key: PodKey },
    /// Report to ztunnel that all pods have been named.
    Snapshot,
}

/// A report of the thread.
#[derive(Debug)]
pub(crate) enum Report {
    /// The outcome of a step.
    Pod(PodKey, Outcome),
    /// ztunnel did not release the pod: another source enrolled it.
    NotOurs(PodKey),
    /// A pod that a list did not have, as the API server shows it.
    Looked(PodKey, Option<Seen>),
    /// Whether ztunnel has accepted the snapshot.
    Snapshot(bool),
    /// Whether ztunnel answers.
    Ztunnel(Result<(), String>),
}

/// Starts the thread. It ends when all senders of jobs are dropped.
pub(crate) fn start(settings: Settings, reports: UnboundedSender<Report>) -> io::Result<Sender<Job>> {
    let (sender, jobs) = channel();
    let enroller = Enroller { settings, client: None, reports };
    std::thread::Builder::new().name("enroller".to_owned()).spawn(move || enroller.run(&jobs))?;
    Ok(sender)
}

struct Enroller {
    settings: Settings,
    client: Option<Client>,
    reports: UnboundedSender<Report>,
}

impl Enroller {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter()).collect();
            let reached = self.connect();
            self.report(Report::Ztunnel(reached.clone()));
            let namespaces = if reached.is_ok() { self.namespaces(&batch) } else { BTreeMap::new() };
            for job in batch {
                let report = match (&self.client, &reached) {
                    (Some(client), Ok(())) => self.execute(client, job, &namespaces),
                    _ => failed(job),
                };
                self.report(report);
            }
        }
    }

    /// Connects the first time; afterwards the client reconnects by itself.
    fn connect(&mut self) -> Result<(), String> {
        if self.client.is_some() {
            return Ok(());
        }
        let socket = &self.settings.socket;
        // Where the links of pods end; ztunnel may not open it.
        let node = File::open(self.settings.proc.join("1/ns/net")).inspect_err(|error| {
            tracing::warn!(%error, "failed to open the node's network namespace (needs CAP_SYS_PTRACE)");
        });
        let node = node.ok().map(Into::into);
        let client = source(OWN_SOURCE)
            .and_then(|source| Client::connect_from(socket, source, self.settings.deadline, node));
        self.client = Some(client.map_err(|error| chain(&error))?);
        Ok(())
    }

    fn namespaces(&self, batch: &[Job]) -> BTreeMap<String, File> {
        let wanted: Vec<&str> = batch
            .iter()
            .filter_map(|job| match job {
                Job::Enrol { uid, .. } => Some(uid.as_str()),
                _ => None,
            })
            .collect();
        if wanted.is_empty() {
            return BTreeMap::new();
        }
        namespaces::find(&self.settings.proc, &wanted).unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to list the node's processes");
            BTreeMap::new()
        })
    }

    fn execute(&self, client: &Client, job: Job, namespaces: &BTreeMap<String, File>) -> Report {
        match job {
            Job::Enrol { key, uid } => {
                if let Some(namespace) = namespaces.get(&uid) {
                    return self.enrol(client, key, uid, namespace);
                }
                tracing::debug!(pod = %key, uid, "pod has no running process yet");
                self.not_yet(client, key)
            }
            Job::Keep { key } => match client.keep(&self.wire_uid(&key)) {
                Ok(()) | Err(Error::Refused { .. }) => Report::Pod(key, Outcome::Kept),
                Err(error) => self.lost(key, &error),
            },
            Job::Release { key } => match client.delete(&self.wire_uid(&key)) {
                Ok(()) => released(key),
                Err(Error::Refused { .. }) => Report::NotOurs(key),
                Err(error) => self.lost(key, &error),
            },
            Job::ReleasePlugins { key } => {
                let result = source(PLUGIN_SOURCE).and_then(|source| {
                    release_once(&self.settings.socket, &source, &self.wire_uid(&key), self.settings.deadline)
                });
                match result {
                    Ok(()) => released(key),
                    Err(error) => self.lost(key, &error),
                }
            }
            Job::Snapshot => {
                let result = client.snapshot_sent();
                if let Err(error) = &result {
                    tracing::warn!(error = chain(error), "failed to enrol the snapshot's pods");
                }
                Report::Snapshot(result.is_ok())
            }
        }
    }

    fn enrol(&self, client: &Client, key: PodKey, uid: String, namespace: &File) -> Report {
        let pod = Pod { uid: self.wire_uid(&key), namespace: key.namespace.clone(), name: key.name.clone() };
        match client.add(&pod, namespace.as_fd()) {
            Ok(()) => {
                tracing::info!(pod = %key, "pod enrolled");
                Report::Pod(key, Outcome::Enrolled { uid })
            }
            Err(error @ Error::Refused { .. }) => {
                tracing::warn!(pod = %key, error = chain(&error), "failed to enrol a pod");
                self.not_yet(client, key)
            }
            Err(error) => self.lost(key, &error),
        }
    }

    /// Keeps the pod in ztunnel, if it has it from before.
    fn not_yet(&self, client: &Client, key: PodKey) -> Report {
        match client.keep(&self.wire_uid(&key)) {
            Ok(()) | Err(Error::Refused { .. }) => Report::Pod(key, Outcome::NotYet),
            Err(error) => self.lost(key, &error),
        }
    }

    fn lost(&self, key: PodKey, error: &Error) -> Report {
        tracing::warn!(pod = %key, error = chain(error), "failed to get an answer from ztunnel");
        self.report(Report::Ztunnel(Err(chain(error))));
        Report::Pod(key, Outcome::Failed)
    }

    fn wire_uid(&self, key: &PodKey) -> String {
        format!("{}//Pod/{}/{}", self.settings.cluster, key.namespace, key.name)
    }

    fn report(&self, report: Report) {
        // The receiver is gone when the agent stops.
        _ = self.reports.send(report);
    }
}

fn released(key: PodKey) -> Report {
    tracing::info!(pod = %key, "pod released");
    Report::Pod(key, Outcome::Released)
}

fn failed(job: Job) -> Report {
    match job {
        Job::Enrol { key, .. } | Job::Keep { key } | Job::Release { key } | Job::ReleasePlugins { key } => {
            Report::Pod(key, Outcome::Failed)
        }
        Job::Snapshot => Report::Snapshot(false),
    }
}

fn source(name: &str) -> Result<SourceName, Error> {
    name.parse()
}

#[cfg(test)]
mod tests;
