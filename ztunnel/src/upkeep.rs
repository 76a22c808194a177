//! What is in the kernel, and in the run folder, is what the daemon believes: compared several times a second
//! and put right. Until a look finds nothing, the daemon is not ready.
//!
//! Entry point: [`start`].

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_core::chain;
use ambit_daemon_kit::admin::Condition;
use ambit_loader::Served;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;
use tokio::runtime::Handle;

use crate::accept;
use crate::enroller::Enroller;
use crate::error::Error;
use crate::interfaces::Change;
use crate::metrics::REPAIRS;
use crate::node::Node;
use crate::pods::{Listening, Pod, borrowed};

/// Between two looks: with the look and the writing, what differs is put right within a second.
const INTERVAL: Duration = Duration::from_millis(400);
/// Between two answers to changes of pods' interfaces.
const CHANGES_PAUSE: Duration = Duration::from_millis(20);
/// How many differences of one look are logged one by one.
const LOGGED: usize = 50;

struct Upkeep {
    node: Arc<Node>,
    enroller: Arc<Enroller>,
    /// The enrolment socket.
    socket: PathBuf,
    condition: Condition,
    runtime: Handle,
}

/// Something that was wrong: its kind, and what in words.
type Repair = (&'static str, String);

/// Starts the thread. A thread and not a task: it enters namespaces and reads long maps. It ends with the
/// process.
pub(crate) fn start(
    node: Arc<Node>,
    enroller: Arc<Enroller>,
    socket: PathBuf,
    condition: Condition,
) -> Result<(), Error> {
    let upkeep = Upkeep { node, enroller, socket, condition, runtime: Handle::current() };
    std::thread::Builder::new()
        .name("upkeep".to_owned())
        .spawn(move || {
            let _context = upkeep.runtime.enter();
            loop {
                upkeep.look();
                upkeep.wait();
            }
        })
        .map(drop)
        .map_err(|source| Error::System { operation: "start the upkeep thread", source })
}

impl Upkeep {
    fn look(&self) {
        let node = &self.node;
        let mut repairs: Vec<Repair> = Vec::new();
        let mut errors: Vec<String> = Vec::new();
        let served: Vec<(Arc<Pod>, Listening)> = node
            .pods
            .all()
            .into_iter()
            .filter_map(|pod| self.listening(&pod, &mut repairs, &mut errors))
            .collect();
        let pods: Vec<Served<'_>> = served
            .iter()
            .map(|(pod, listening)| Served {
                netns: pod.descriptor(),
                cookie: pod.cookie,
                listeners: borrowed(listening),
            })
            .collect();
        let mut look = node.dataplane.put_right(&pods);
        if look.stands_by {
            return self.condition.met_because("a newer daemon of this node compares it");
        }
        let reclassified = node.links.put_right(&mut look.found).unwrap_or_else(|error| {
            errors.push(error);
            false
        });
        let passed = reclassified || !look.found.is_empty();
        repairs.extend(look.found.into_iter().map(|difference| (difference.kind, difference.to_string())));
        errors.extend(look.errors.iter().map(|error| chain(error)));
        self.files(&mut repairs, &mut errors);
        if passed {
            node.direct.put_right();
        }
        self.report(&repairs, &errors);
    }

    /// Waits for the next look, and follows what happens to the interfaces of pods meanwhile.
    fn wait(&self) {
        let until = Instant::now() + INTERVAL;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let pods = self.node.pods.all();
            let mut changes: Vec<PollFd<'_>> =
                pods.iter().map(|pod| PollFd::new(pod.interfaces().as_fd(), PollFlags::POLLIN)).collect();
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            if poll(&mut changes, timeout).is_ok_and(|changed| changed == 0) {
                return;
            }
            for pod in pods.iter().filter(|pod| pod.interfaces().changed()) {
                self.follow_addresses(pod);
            }
            // A pod that goes on changing its interfaces does not keep the thread busy.
            std::thread::sleep(CHANGES_PAUSE);
        }
    }

    /// Voids the verdicts that lead to addresses that a pod no longer has.
    fn follow_addresses(&self, pod: &Pod) {
        let uid = &pod.workload.uid;
        let dataplane = &self.node.dataplane;
        let voided = match pod.lost_addresses() {
            Ok(Change::None) => return,
            Ok(Change::Some) => pod.number().map_or(Ok(()), |number| dataplane.advance_generation(number)),
            // Where that is not known, too.
            Ok(Change::All) | Err(_) => dataplane.end(pod.cookie),
        };
        match voided {
            Ok(()) => tracing::info!(%uid, "pod has lost addresses, its cached verdicts are void"),
            Err(error) => tracing::error!(%uid, error = chain(&error), "failed to void a pod's verdicts"),
        }
    }

    /// A pod's listeners, opened again if one was closed from outside. None: this daemon does not serve the
    /// pod yet, or no longer.
    fn listening(
        &self,
        pod: &Arc<Pod>,
        repairs: &mut Vec<Repair>,
        errors: &mut Vec<String>,
    ) -> Option<(Arc<Pod>, Listening)> {
        let held = pod.listening()?;
        let is_open = |listening: &Listening| {
            listening.iter().all(|(_, _, socket)| SockRef::from(&**socket).is_listener().unwrap_or(false))
        };
        if is_open(&held) {
            return Some((pod.clone(), held));
        }
        if self.node.proxy.drain.is_started() {
            return None;
        }
        match self.listen_again(pod) {
            Ok(()) => repairs.push(("listener", format!("listener of {}: closed", pod.workload.uid))),
            Err(error) => errors.push(chain(&error)),
        }
        Some((pod.clone(), pod.listening()?))
    }

    fn listen_again(&self, pod: &Arc<Pod>) -> Result<(), Error> {
        let listeners = pod.listen()?;
        self.node.dataplane.set_listeners(pod.cookie, &listeners.borrow()).map_err(|source| Error::Pod {
            operation: "set the listeners of",
            workload: pod.workload.uid.to_string(),
            source,
        })?;
        accept::start(&self.node, pod, listeners)
    }

    fn files(&self, repairs: &mut Vec<Repair>, errors: &mut Vec<String>) {
        if let Some(folder) = self.socket.parent()
            && let Err(error) = std::fs::create_dir_all(folder)
        {
            errors.push(format!("failed to create {}: {error}", folder.display()));
        }
        let owners = &self.enroller.owners;
        match owners.put_right() {
            Ok(true) => repairs.push(("file", format!("file {}: missing", owners.path().display()))),
            Ok(false) => {}
            Err(error) => errors.push(format!("failed to write {}: {error}", owners.path().display())),
        }
        if self.socket.exists() || self.node.proxy.drain.is_started() {
            return;
        }
        match ambit_enrol::Server::bind(&self.socket) {
            Ok(server) => {
                repairs.push(("file", format!("file {}: missing", self.socket.display())));
                let (enroller, node) = (self.enroller.clone(), self.node.clone());
                self.runtime.spawn(async move {
                    tokio::select! {
                        () = ambit_enrol::serve(server, enroller) => {}
                        () = node.proxy.drain.started() => {}
                    }
                });
            }
            Err(error) => errors.push(chain(&error)),
        }
    }

    fn report(&self, repairs: &[Repair], errors: &[String]) {
        for (kind, found) in repairs.iter().take(LOGGED) {
            tracing::warn!(kind, found, "not as this daemon left it: put right");
        }
        if repairs.len() > LOGGED {
            tracing::warn!(more = repairs.len() - LOGGED, "not as this daemon left it: put right");
        }
        for (kind, _) in repairs {
            REPAIRS.count([kind]);
        }
        for error in errors {
            tracing::error!(error, "failed to compare the kernel with what this daemon wrote");
        }
        match (errors.first(), repairs.first()) {
            (Some(error), _) => self.condition.unmet(error.clone()),
            (None, Some((_, found))) => self.condition.unmet(format!("put right a moment ago: {found}")),
            (None, None) => self.condition.met(),
        }
    }
}
