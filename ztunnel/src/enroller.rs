//! Carries enrolment out: one thread does what [`Enrolment`] says, in the order in which sources ask.
//!
//! A thread and not a task: it enters namespaces and loads programs, which blocks.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::chain;
use ambit_core::mesh::Mesh;
use ambit_daemon_kit::admin::Condition;
use ambit_enrol::{Handler, NetworkNamespace, Request, SourceName};
use ambit_loader::NetnsCookie;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::accept;
use crate::direct::Scope;
use crate::enrolment::{Enrolment, Release};
use crate::error::Error;
use crate::netns::within;
use crate::node::Node;
use crate::owners::OwnersFile;
use crate::pods::Pod;

/// Requests that wait for the thread. A source waits for each answer, so this limits the sources.
const QUEUE: usize = 64;
/// How long an enrolment waits for the first configuration. Less than sources wait for an answer.
const SYNC_TIMEOUT: Duration = Duration::from_secs(20);

/// Where requests go.
pub(crate) struct Enroller {
    node: Arc<Node>,
    commands: mpsc::Sender<Command>,
    /// Which source enrolled which pod.
    pub(crate) owners: Arc<OwnersFile>,
}

struct Command {
    source: SourceName,
    request: Request,
    reply: oneshot::Sender<Result<Done, String>>,
}

/// What a request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// A workload is enrolled that was not before.
    Fresh,
    Other,
}

impl Enroller {
    /// Starts the thread. The condition is met when there is a listener for every pod that is enrolled.
    pub(crate) fn start(
        node: Arc<Node>,
        run_dir: &std::path::Path,
        served: Condition,
    ) -> Result<Self, Error> {
        let (commands, incoming) = mpsc::channel(QUEUE);
        let owners = Arc::new(OwnersFile::read(run_dir.join("enrolled.json"))?);
        let worker = Worker::recover(node.clone(), owners.clone(), served)?;
        worker.update_condition();
        let runtime = Handle::current();
        std::thread::Builder::new()
            .name("enrol".to_owned())
            .spawn(move || worker.run(incoming, &runtime))
            .map_err(|source| Error::System { operation: "start the enrolment thread", source })?;
        Ok(Self { node, commands, owners })
    }

    async fn ask(&self, source: &SourceName, request: Request) -> Result<Done, String> {
        let gone = || "the daemon is ending".to_owned();
        let (reply, answer) = oneshot::channel();
        let command = Command { source: source.clone(), request, reply };
        self.commands.send(command).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Handler for Enroller {
    async fn handle(&self, source: &SourceName, request: Request) -> Result<(), String> {
        let added = match &request {
            Request::Add(pod, _) => Some(pod.uid.clone()),
            _ => None,
        };
        let done = self.ask(source, request).await?;
        let Some(uid) = added else { return Ok(()) };
        if self.node.proxy.mesh.synced_within(SYNC_TIMEOUT).await {
            return Ok(());
        }
        // Without configuration it could connect nowhere. One that was enrolled before stays enrolled.
        if done == Done::Fresh {
            self.ask(source, Request::Delete { uid }).await?;
        }
        Err("no configuration from the controller yet".to_owned())
    }
}

struct Worker {
    node: Arc<Node>,
    state: Enrolment,
    owners: Arc<OwnersFile>,
    served: Condition,
}

impl Worker {
    fn recover(node: Arc<Node>, owners: Arc<OwnersFile>, served: Condition) -> Result<Self, Error> {
        let pods = node
            .dataplane
            .pods()
            .map_err(|source| Error::Dataplane { operation: "list enrolled pods", source })?;
        for (cookie, uid) in &pods {
            tracing::info!(
                uid, %cookie,
                "enrolled by an earlier daemon; its source must add it again"
            );
        }
        let state = Enrolment::recover(pods, &owners.owners());
        Ok(Self { node, state, owners, served })
    }

    fn run(mut self, mut commands: mpsc::Receiver<Command>, runtime: &Handle) {
        let _context = runtime.enter();
        while let Some(Command { source, request, reply }) = commands.blocking_recv() {
            let result = self.execute(&source, request);
            self.owners.save(self.state.owners());
            self.update_condition();
            // The session may have ended; what was done stays done.
            let _ = reply.send(result);
        }
    }

    /// A daemon that replaces an earlier one is ready when it serves all of its pods: only then may the
    /// earlier one end.
    fn update_condition(&self) {
        match self.state.waiting() {
            0 => self.served.met(),
            waiting => {
                self.served.unmet(format!("{waiting} enrolled pods wait for their source to add them again"));
            }
        }
    }

    fn execute(&mut self, source: &SourceName, request: Request) -> Result<Done, String> {
        match request {
            Request::Hello => self.state.hello(source),
            Request::Add(pod, namespace) => {
                return self.add(source, &pod.uid, namespace).map_err(|error| {
                    tracing::error!(uid = pod.uid, error = chain(&error), "failed to enrol");
                    chain(&error)
                });
            }
            Request::Keep { uid } => self.state.keep(source, &uid).map_err(|error| error.to_string())?,
            Request::Delete { uid } => {
                let release = self.state.delete(source, &uid).map_err(|error| error.to_string())?;
                self.release(release)?;
            }
            Request::Ending(namespace) => {
                let ended = cookie(&namespace).and_then(|cookie| self.end(cookie));
                ended.map_err(|error| chain(&error))?;
            }
            Request::SnapshotSent => {
                let gone = self.state.snapshot_sent(source);
                self.release(gone)?;
            }
            Request::NodeNetwork(namespace) => {
                let written = cookie(&namespace).and_then(|host| self.set_host(host));
                written.map_err(|error| chain(&error))?;
                if self.node.links.node_network(namespace) {
                    self.node.direct.recheck(Scope::All);
                }
            }
        }
        Ok(Done::Other)
    }

    fn add(&mut self, source: &SourceName, uid: &str, namespace: NetworkNamespace) -> Result<Done, Error> {
        let pod = Arc::new(Pod::new(uid, namespace, self.node.dataplane.clone())?);
        for release in self.state.displaced(uid, pod.cookie) {
            self.release_one(&release)?;
        }
        let held = self.state.holds(uid, pod.cookie);
        if !held || self.node.pods.get(&pod.workload.uid).is_none() {
            self.enrol(&pod, !held).inspect_err(|_| {
                // Half enrolled is neither in the mesh nor out of it. What an earlier daemon enrolled stays
                // closed.
                if !held && let Err(error) = self.node.dataplane.release(pod.cookie) {
                    tracing::error!(uid, error = chain(&error), "failed to undo an enrolment");
                }
            })?;
            tracing::info!(uid, cookie = %pod.cookie, source = %source, "enrolled");
        }
        self.state.added(source, uid, pod.cookie);
        Ok(if held { Done::Other } else { Done::Fresh })
    }

    fn enrol(&self, pod: &Arc<Pod>, fresh: bool) -> Result<(), Error> {
        let node = &self.node;
        let (dataplane, uid) = (&node.dataplane, &pod.workload.uid);
        let failed = |source| Error::Pod { operation: "enrol", workload: uid.to_string(), source };
        let listeners = pod.listen()?;
        let number = dataplane.enrol(pod.descriptor(), pod.cookie, &uid.0).map_err(failed)?;
        pod.numbered(number);
        node.direct.enrolled(number, uid);
        dataplane.set_listeners(pod.cookie, &listeners.borrow()).map_err(failed)?;
        // In the table first: from now on changes of the mesh reach it.
        node.pods.insert(pod.clone());
        self.configure(pod).and_then(|()| accept::start(node, pod, listeners)).inspect_err(|_| {
            node.pods.remove(uid);
        })?;
        node.direct.settled(pod, fresh);
        // Last: until the kernel knows the pod's link, none of its connections is direct.
        node.links.enrolled(pod, number);
        Ok(())
    }

    /// Gives a pod in the table what the mesh says of it. A change that came in meanwhile may have been
    /// written already and overwritten here: then it is written once more. Until policies are known, ports
    /// start in mode `Check` or keep the earlier daemon's mode.
    fn configure(&self, pod: &Arc<Pod>) -> Result<(), Error> {
        let node = &self.node;
        let mut written: Option<Arc<Mesh>> = None;
        while let Some(mesh) = node.proxy.mesh.mesh() {
            if written.as_ref().is_some_and(|written| Arc::ptr_eq(written, &mesh)) {
                break;
            }
            node.identities.identify(&mesh, &pod.workload);
            node.capture.set_mode(&mesh, pod)?;
            written = Some(mesh);
        }
        Ok(())
    }

    fn set_host(&self, host: NetnsCookie) -> Result<(), Error> {
        if self.node.config.host_network {
            return Ok(());
        }
        let failed = |source| Error::Dataplane { operation: "write the node's network namespace", source };
        self.node.dataplane.set_host(host).map_err(failed)
    }

    /// A pod is about to leave its namespace: from here on no cached verdict leads to its addresses.
    fn end(&self, cookie: NetnsCookie) -> Result<(), Error> {
        let failed = |source| Error::Dataplane { operation: "void the verdicts of a pod that ends", source };
        self.node.dataplane.end(cookie).map_err(failed)
    }

    fn release(&mut self, releases: impl IntoIterator<Item = Release>) -> Result<(), String> {
        for release in releases {
            self.release_one(&release).map_err(|error| chain(&error))?;
        }
        Ok(())
    }

    fn release_one(&mut self, release: &Release) -> Result<(), Error> {
        let Release { uid, cookie } = release;
        self.node.dataplane.release(*cookie).map_err(|source| Error::Pod {
            operation: "release",
            workload: uid.clone(),
            source,
        })?;
        self.node.released(uid);
        self.state.released(uid);
        tracing::info!(uid, %cookie, "released");
        Ok(())
    }
}

/// The kernel's number of a namespace.
fn cookie(namespace: &NetworkNamespace) -> Result<NetnsCookie, Error> {
    within(namespace, || {
        let socket = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        ambit_loader::netns_cookie(socket.as_fd())
    })
    .map_err(|source| Error::System { operation: "read the cookie of a network namespace", source })
}
