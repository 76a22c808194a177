//! Jobs over the real protocol, against a daemon that owns what other sources enrolled. Needs root.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ambit_enrol::{Handler, Request, Server, serve};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

const UID: &str = "0b2f6c1e-8f0a-4f5e-9d63-2f6d1f0c9a11";
const WIRE: &str = "c//Pod/shop/web";

/// The enrolled pods and their sources; a pod of another source is not released.
#[derive(Debug, Default)]
struct Daemon(Mutex<BTreeMap<String, SourceName>>);

impl Handler for Daemon {
    async fn handle(&self, source: &SourceName, request: Request) -> Result<(), String> {
        let mut owners = self.0.lock().unwrap();
        match request {
            Request::Add(pod, _) if pod.name == "refused" => return Err("no configuration yet".to_owned()),
            Request::Add(pod, _) => _ = owners.insert(pod.uid, source.clone()),
            Request::Keep { uid } if !owners.contains_key(&uid) => {
                return Err(format!("failed to keep {uid}: it is not enrolled"));
            }
            Request::Delete { uid } => match owners.get(&uid) {
                Some(owner) if owner != source => {
                    return Err(format!("failed to change {uid}: it belongs to source {owner}"));
                }
                _ => _ = owners.remove(&uid),
            },
            Request::Keep { .. }
            | Request::Hello
            | Request::SnapshotSent
            | Request::NodeNetwork(_)
            | Request::Ending(_) => {}
        }
        Ok(())
    }
}

/// A node: its ztunnel, its processes, and the thread.
struct Node {
    folder: tempfile::TempDir,
    daemon: Arc<Daemon>,
    runtime: Runtime,
    jobs: Sender<Job>,
    reports: UnboundedReceiver<Report>,
    /// Kept open: the thread that made the namespace has ended.
    namespace: File,
}

impl Node {
    fn start(deadline: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let proc = folder.path().join("proc");
        std::fs::create_dir(&proc).unwrap();
        let settings =
            Settings { socket: folder.path().join("enrol.sock"), proc, cluster: "c".to_owned(), deadline };
        let (reporter, reports) = unbounded_channel();
        let jobs = start(settings, reporter).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let namespace = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = namespace.join().unwrap();
        Self { folder, daemon: Arc::default(), runtime, jobs, reports, namespace }
    }

    fn with_ztunnel() -> Self {
        let node = Self::start(DEADLINE);
        let path = node.folder.path().join("enrol.sock");
        let server = node.runtime.block_on(async { Server::bind(&path) }).unwrap();
        node.runtime.spawn(serve(server, node.daemon.clone()));
        node
    }

    /// A process of the pod, whose network namespace is the node's only one.
    fn run_pod(&self) {
        let folder = self.folder.path().join("proc/77");
        std::fs::create_dir_all(folder.join("ns")).unwrap();
        std::fs::write(folder.join("cgroup"), format!("0::/kubepods/pod{UID}/c\n")).unwrap();
        std::fs::write(folder.join("stat"), format!("77 (pause) S {}5 0\n", "0 ".repeat(18))).unwrap();
        let target = format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd());
        std::os::unix::fs::symlink(Path::new(&target), folder.join("ns/net")).unwrap();
    }

    /// Enrols a pod as the plugin does.
    fn plugin_enrols(&self, name: &str) {
        let pod =
            Pod { uid: format!("c//Pod/shop/{name}"), namespace: "shop".to_owned(), name: name.to_owned() };
        let socket = self.folder.path().join("enrol.sock");
        let source = source(PLUGIN_SOURCE).unwrap();
        ambit_enrol::enrol_once(&socket, &source, &pod, self.namespace.as_fd(), DEADLINE).unwrap();
    }

    fn job(&mut self, job: Job) -> String {
        self.jobs.send(job).unwrap();
        loop {
            match self.reports.blocking_recv().expect("the thread runs") {
                Report::Ztunnel(_) => {}
                report => return format!("{report:?}"),
            }
        }
    }

    fn owners(&self) -> Vec<String> {
        let owners = self.daemon.0.lock().unwrap();
        owners.iter().map(|(uid, owner)| format!("{uid} {owner}")).collect()
    }
}

fn key(name: &str) -> PodKey {
    PodKey { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn enrol(name: &str) -> Job {
    Job::Enrol { key: key(name), uid: UID.to_owned() }
}

#[test]
fn a_running_pod_is_enrolled_and_released() {
    let mut node = Node::with_ztunnel();
    assert!(node.job(enrol("web")).contains("NotYet"), "no process of it runs");
    node.run_pod();
    assert!(node.job(enrol("web")).contains("Enrolled"));
    assert_eq!(node.owners(), [format!("{WIRE} node-agent")]);
    assert!(node.job(Job::Keep { key: key("web") }).contains("Kept"));
    assert_eq!(node.job(Job::Snapshot), "Snapshot(true)");
    assert!(node.job(Job::Release { key: key("web") }).contains("Released"));
    assert_eq!(node.owners(), Vec::<String>::new());
    assert!(node.job(Job::Keep { key: key("web") }).contains("Kept"), "not there: named all the same");
}

#[test]
fn a_refused_pod_is_tried_again() {
    let mut node = Node::with_ztunnel();
    node.run_pod();
    assert!(node.job(enrol("refused")).contains("NotYet"));
    assert_eq!(node.owners(), Vec::<String>::new());
}

#[test]
fn pods_of_the_plugin_are_taken_over_or_released_in_its_name() {
    let mut node = Node::with_ztunnel();
    node.run_pod();
    node.plugin_enrols("web");
    node.plugin_enrols("gone");
    assert!(node.job(enrol("web")).contains("Enrolled"));
    assert!(node.job(Job::Release { key: key("gone") }).contains("NotOurs"));
    assert_eq!(node.owners(), ["c//Pod/shop/gone cni".to_owned(), format!("{WIRE} node-agent")]);
    assert!(node.job(Job::ReleasePlugins { key: key("gone") }).contains("Released"));
    // A successor that the plugin has enrolled since: not ours to release any more.
    node.plugin_enrols("web");
    assert!(node.job(Job::Release { key: key("web") }).contains("NotOurs"));
    assert_eq!(node.owners(), [format!("{WIRE} cni")]);
}

#[test]
fn without_ztunnel_every_job_fails_and_is_reported() {
    let mut node = Node::start(Duration::from_millis(50));
    node.run_pod();
    node.jobs.send(enrol("web")).unwrap();
    let first = node.reports.blocking_recv().unwrap();
    assert!(matches!(&first, Report::Ztunnel(Err(why)) if why.contains("failed to connect")), "{first:?}");
    assert!(format!("{:?}", node.reports.blocking_recv().unwrap()).contains("Failed"));
    assert_eq!(node.job(Job::Snapshot), "Snapshot(false)");
    assert!(node.job(Job::Release { key: key("web") }).contains("Failed"));
}
