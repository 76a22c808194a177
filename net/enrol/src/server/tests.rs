//! The protocol over real sockets: what is refused, and what survives a restart of the daemon. Needs root.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use nix::sys::socket::{connect, socketpair};
use tokio::runtime::Runtime;

use super::*;
use crate::Client;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Notes what it is asked; refuses workloads named `refused`.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn seen(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Handler for Recorder {
    async fn handle(&self, source: &SourceName, request: Request) -> Result<(), String> {
        let line = match request {
            Request::Hello => "hello".to_owned(),
            Request::Add(pod, _) if pod.name == "refused" => return Err("not this one".to_owned()),
            Request::Add(pod, _) => format!("add {}", pod.uid),
            Request::Keep { uid } => format!("keep {uid}"),
            Request::Delete { uid } => format!("delete {uid}"),
            Request::SnapshotSent => "snapshot".to_owned(),
            Request::NodeNetwork(_) => "node network".to_owned(),
            Request::Ending(_) => "ending".to_owned(),
        };
        self.0.lock().unwrap().push(format!("{source}: {line}"));
        Ok(())
    }
}

/// A daemon's enrolment side, and a namespace to enrol.
struct Daemon {
    runtime: Option<Runtime>,
    recorder: Arc<Recorder>,
    folder: Arc<tempfile::TempDir>,
    namespace: File,
}

impl Daemon {
    fn start() -> Self {
        let mut daemon = Self {
            runtime: None,
            recorder: Arc::default(),
            folder: Arc::new(tempfile::tempdir().unwrap()),
            namespace: fresh_namespace(),
        };
        daemon.run();
        daemon
    }

    /// The next daemon on the same node, not yet running.
    fn beside(other: &Self) -> Self {
        let (folder, namespace) = (other.folder.clone(), other.namespace.try_clone().unwrap());
        Self { runtime: None, recorder: Arc::default(), folder, namespace }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("enrol.sock")
    }

    fn run(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(async { Server::bind(&self.path()) }).unwrap();
        runtime.spawn(serve(server, self.recorder.clone()));
        self.runtime = Some(runtime);
    }

    fn stop(&mut self) {
        self.runtime.take().unwrap().shutdown_timeout(TIMEOUT);
    }

    fn client(&self) -> Client {
        Client::connect(self.path(), "test".parse().unwrap(), TIMEOUT).unwrap()
    }

    fn raw(&self) -> Raw {
        let flags = SockFlag::SOCK_CLOEXEC;
        let descriptor = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        connect(descriptor.as_raw_fd(), &UnixAddr::new(&self.path()).unwrap()).unwrap();
        Raw(descriptor)
    }

    fn greeted(&self) -> Raw {
        let raw = self.raw();
        assert_eq!(raw.ask(br#"{"hello":{"version":1,"source":"raw"}}"#, &[]), Some(Answer::Ack {}));
        raw
    }
}

/// A peer that sends what it likes.
struct Raw(OwnedFd);

impl Raw {
    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [nix::sys::socket::ControlMessage::ScmRights(&raw)];
        nix::sys::socket::sendmsg::<UnixAddr>(
            self.0.as_raw_fd(),
            &[io::IoSlice::new(bytes)],
            if raw.is_empty() { &[] } else { &rights },
            nix::sys::socket::MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .unwrap();
    }

    fn answer(&self) -> Option<Answer> {
        let packet = packet::receive(self.0.as_fd()).unwrap()?;
        Some(serde_json::from_slice(&packet.bytes).unwrap())
    }

    fn ask(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Option<Answer> {
        self.send(bytes, descriptors);
        self.answer()
    }
}

/// A network namespace that is neither this process's nor the machine's.
fn fresh_namespace() -> File {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
        File::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}

fn pod(name: &str) -> Pod {
    Pod { uid: format!("c//Pod/shop/{name}"), namespace: "shop".into(), name: name.into() }
}

fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}: not within {TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn requests_reach_the_handler_and_are_answered() {
    let daemon = Daemon::start();
    let client = daemon.client();
    client.add(&pod("web"), daemon.namespace.as_fd()).unwrap();
    client.keep("c//Pod/shop/cart").unwrap();
    client.delete("c//Pod/shop/web").unwrap();
    client.snapshot_sent().unwrap();
    let refused = client.add(&pod("refused"), daemon.namespace.as_fd()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "failed to enrol c//Pod/shop/refused: refused by the daemon: not this one"
    );
    client.keep("c//Pod/shop/after").unwrap();
    let expected = [
        "test: hello",
        "test: add c//Pod/shop/web",
        "test: keep c//Pod/shop/cart",
        "test: delete c//Pod/shop/web",
        "test: snapshot",
        "test: keep c//Pod/shop/after",
    ];
    assert_eq!(daemon.recorder.seen(), expected);
    let mode = std::fs::metadata(daemon.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A daemon that does not take the node's network namespace.
struct Older(Arc<Recorder>);

impl Handler for Older {
    async fn handle(&self, source: &SourceName, request: Request) -> Result<(), String> {
        match request {
            Request::NodeNetwork(_) => Err("unknown".to_owned()),
            request => self.0.handle(source, request).await,
        }
    }
}

#[test]
fn node_network_is_told_first_and_a_daemon_that_refuses_it_gets_the_rest() {
    let mut daemon = Daemon::start();
    let node = || Some(daemon.namespace.try_clone().unwrap().into());
    let client = Client::connect_from(daemon.path(), "test".parse().unwrap(), TIMEOUT, node()).unwrap();
    client.add(&pod("web"), daemon.namespace.as_fd()).unwrap();
    let expected = ["test: hello", "test: node network", "test: add c//Pod/shop/web"];
    assert_eq!(daemon.recorder.seen(), expected);
    daemon.stop();
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(async { Server::bind(&daemon.path()) }).unwrap();
    runtime.spawn(serve(server, Arc::new(Older(daemon.recorder.clone()))));
    client.keep("c//Pod/shop/cart").unwrap();
    let seen = daemon.recorder.seen();
    let expected = ["test: hello", "test: add c//Pod/shop/web", "test: keep c//Pod/shop/cart"];
    assert_eq!(seen[seen.len() - 3..], expected.map(str::to_owned), "{seen:?}");
}

#[test]
fn restarted_daemon_gets_everything_again() {
    let mut daemon = Daemon::start();
    let client = daemon.client();
    for name in ["web", "cart"] {
        client.add(&pod(name), daemon.namespace.as_fd()).unwrap();
    }
    client.delete("c//Pod/shop/cart").unwrap();
    client.snapshot_sent().unwrap();
    daemon.stop();
    let before = daemon.recorder.seen().len();
    daemon.run();
    let expected = ["test: hello", "test: add c//Pod/shop/web", "test: snapshot"];
    wait_until("the new daemon hears the whole snapshot", || {
        daemon.recorder.seen()[before..] == expected.map(str::to_owned)
    });
    client.keep("c//Pod/shop/web").unwrap();
}

#[test]
fn replacing_daemon_gets_everything_before_new_requests() {
    let old = Daemon::start();
    let client = old.client();
    client.add(&pod("web"), old.namespace.as_fd()).unwrap();
    client.keep("c//Pod/shop/cart").unwrap();
    client.snapshot_sent().unwrap();
    let before = old.recorder.seen();
    let mut new = Daemon::beside(&old);
    new.run();
    // The old one still answers; the next call goes to the new one, behind all that was said before.
    client.add(&pod("late"), old.namespace.as_fd()).unwrap();
    let expected = [
        "test: hello",
        "test: add c//Pod/shop/web",
        "test: keep c//Pod/shop/cart",
        "test: snapshot",
        "test: add c//Pod/shop/late",
    ];
    assert_eq!(new.recorder.seen(), expected);
    assert_eq!(old.recorder.seen(), before, "the old daemon hears nothing more");
}

#[test]
fn replacing_daemon_is_found_without_a_call() {
    let old = Daemon::start();
    let client = old.client();
    client.add(&pod("web"), old.namespace.as_fd()).unwrap();
    let mut new = Daemon::beside(&old);
    new.run();
    wait_until("the new daemon has the snapshot", || {
        new.recorder.seen() == ["test: hello", "test: add c//Pod/shop/web"].map(str::to_owned)
    });
    client.keep("c//Pod/shop/web").unwrap();
    assert_eq!(old.recorder.seen().len(), 2, "{:?}", old.recorder.seen());
}

#[test]
fn dead_socket_does_not_replace_a_live_connection() {
    let old = Daemon::start();
    let client = old.client();
    // Bound, never listening: a daemon that died at the wrong moment.
    std::fs::remove_file(old.path()).unwrap();
    let dead = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(dead.as_raw_fd(), &UnixAddr::new(&old.path()).unwrap()).unwrap();
    client.add(&pod("web"), old.namespace.as_fd()).unwrap();
    assert_eq!(old.recorder.seen(), ["test: hello", "test: add c//Pod/shop/web"]);
}

#[test]
fn one_shot_source_enrols_and_releases() {
    let mut daemon = Daemon::start();
    let source: SourceName = "cni".parse().unwrap();
    let once = |name: &str, timeout| {
        crate::enrol_once(&daemon.path(), &source, &pod(name), daemon.namespace.as_fd(), timeout)
    };
    once("web", TIMEOUT).unwrap();
    let refused = once("refused", TIMEOUT).unwrap_err().to_string();
    assert_eq!(refused, "failed to enrol c//Pod/shop/refused: refused by the daemon: not this one");
    crate::release_once(&daemon.path(), &source, "c//Pod/shop/web", TIMEOUT).unwrap();
    let expected =
        ["cni: hello", "cni: add c//Pod/shop/web", "cni: hello", "cni: hello", "cni: delete c//Pod/shop/web"];
    assert_eq!(daemon.recorder.seen(), expected);
    daemon.stop();
    let short = Duration::from_millis(300);
    let error =
        crate::enrol_once(&daemon.path(), &source, &pod("web"), daemon.namespace.as_fd(), short).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[test]
fn call_survives_a_daemon_restart() {
    let mut daemon = Daemon::start();
    let client = daemon.client();
    daemon.stop();
    let namespace = daemon.namespace.try_clone().unwrap();
    let call = std::thread::spawn(move || client.add(&pod("web"), namespace.as_fd()));
    daemon.run();
    call.join().unwrap().unwrap();
    assert!(daemon.recorder.seen().contains(&"test: add c//Pod/shop/web".to_owned()));
}

#[test]
fn connect_without_daemon_times_out() {
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let missing = folder.path().join("enrol.sock");
    let error = Client::connect(missing, "test".parse().unwrap(), Duration::from_millis(300)).unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(started.elapsed() < TIMEOUT);
}

#[test]
fn protocol_violation_is_refused_and_closes_the_connection() {
    let daemon = Daemon::start();
    let add = br#"{"add":{"uid":"u","namespace":"n","name":"x"}}"#;
    let namespace = daemon.namespace.as_fd();
    let big = format!(r#"{{"keep":{{"uid":"{}"}}}}"#, "x".repeat(20_000));
    let rows: [(&str, &[u8], Vec<BorrowedFd<'_>>, &str); 7] = [
        ("garbage", b"\xff\xfe{{{", vec![], "expected value"),
        ("too long", big.as_bytes(), vec![], "message is too long"),
        ("add without a descriptor", add, vec![], "needs a descriptor"),
        ("two descriptors", add, vec![namespace, namespace], "more than one"),
        ("descriptor with keep", br#"{"keep":{"uid":"u"}}"#, vec![namespace], "unexpected descriptor"),
        ("second hello", br#"{"hello":{"version":1,"source":"raw"}}"#, vec![], "hello was already received"),
        ("no bytes, a descriptor", b"", vec![namespace], "EOF"),
    ];
    for (name, bytes, descriptors, expected) in rows {
        let raw = daemon.greeted();
        match raw.ask(bytes, &descriptors) {
            Some(Answer::Refused { reason }) => assert!(reason.contains(expected), "{name}: {reason}"),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(raw.answer(), None, "{name}: the session is closed");
    }
    let raw = daemon.raw();
    match raw.ask(add, &[namespace]) {
        Some(Answer::Refused { reason }) => assert!(reason.contains("must be a hello"), "{reason}"),
        other => panic!("add before hello: {other:?}"),
    }
    assert_eq!(raw.answer(), None);
    assert!(!daemon.recorder.seen().iter().any(|line| line.contains("add")), "{:?}", daemon.recorder.seen());
}

#[test]
fn descriptors_other_than_network_namespaces_are_refused() {
    let daemon = Daemon::start();
    let add = br#"{"add":{"uid":"u","namespace":"n","name":"x"}}"#;
    let file = tempfile::tempfile().unwrap();
    let mounts = File::open("/proc/self/ns/mnt").unwrap();
    let own = File::open("/proc/self/ns/net").unwrap();
    let (socket, _other) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let rows = [
        ("a file", file.as_fd(), "not a namespace"),
        ("a socket", socket.as_fd(), "not a namespace"),
        ("a mount namespace", mounts.as_fd(), "not a network namespace"),
        ("the daemon's namespace", own.as_fd(), "network namespace of the daemon"),
    ];
    let raw = daemon.greeted();
    for (name, descriptor, expected) in rows {
        match raw.ask(add, &[descriptor]) {
            Some(Answer::Refused { reason }) => assert!(reason.contains(expected), "{name}: {reason}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(raw.ask(add, &[daemon.namespace.as_fd()]), Some(Answer::Ack {}), "the session goes on");
}

#[test]
fn own_network_namespace_is_refused() {
    // The daemon lives in another one, as a node's does in the lab.
    let daemon = std::thread::scope(|scope| {
        let start = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            Daemon::start()
        };
        scope.spawn(start).join().unwrap()
    });
    let own = File::open("/proc/self/ns/net").unwrap();
    let error = daemon.client().add(&pod("web"), own.as_fd()).unwrap_err().to_string();
    assert!(error.contains("network namespace of its source"), "{error}");
}

#[test]
fn peers_other_than_root_are_refused() {
    let daemon = Daemon::start();
    std::fs::set_permissions(daemon.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(daemon.path(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let raw = std::thread::scope(|scope| scope.spawn(|| as_nobody(|| daemon.raw())).join().unwrap());
    let only_root = Answer::Refused { reason: "only root may enrol".into() };
    assert_eq!(raw.answer(), Some(only_root));
    assert_eq!(raw.answer(), None);
    assert_eq!(daemon.recorder.seen(), Vec::<String>::new());
}

/// Runs something with the effective user id of this thread alone set to nobody's; the thread is of no use
/// afterwards.
#[expect(unsafe_code, reason = "libc's wrapper would change the user id of every thread")]
fn as_nobody<T>(action: impl FnOnce() -> T) -> T {
    const KEEP: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: the raw system call takes three numbers and changes this thread's credentials only.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, KEEP, 65534, KEEP) };
    assert_eq!(result, 0, "needs root");
    action()
}

#[test]
fn concurrent_sources_are_served() {
    let daemon = Daemon::start();
    let clients: BTreeMap<usize, Client> = (0..20).map(|n| (n, daemon.client())).collect();
    std::thread::scope(|scope| {
        for (n, client) in &clients {
            let daemon = &daemon;
            scope.spawn(move || client.add(&pod(&format!("p{n}")), daemon.namespace.as_fd()).unwrap());
        }
    });
    let seen = daemon.recorder.seen();
    assert_eq!(seen.iter().filter(|line| line.contains("add")).count(), clients.len());
}
