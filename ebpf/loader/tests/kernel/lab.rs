//! A lab for one test: a private BPF filesystem, pods and a node. The kernel removes all of it when the
//! test's process ends, since nothing has a name outside the process.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ambit_loader::{
    Dataplane, KernelReason, Lease, LinkKind, Listeners, NetnsCookie, PodLink, Settings, WorkloadNumber,
    detach, netns_cookie,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, Socket, Type};
use tempfile::TempDir;

/// Long enough for a loaded machine; only a failing test reaches it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A captured destination without a host: connections to it succeed only through capture.
pub(crate) const MESH_V4: &str = "10.9.9.9";
pub(crate) const MESH_V6: &str = "fd00:9::9";
/// Addresses of the pod and of its node.
pub(crate) const POD_V4: &str = "10.1.0.2";
pub(crate) const POD_V6: &str = "fd00:1::2";
pub(crate) const NODE_V4: &str = "10.1.0.1";
pub(crate) const NODE_V6: &str = "fd00:1::1";
/// Further addresses in the node's namespace.
pub(crate) const STRANGER_V4: &str = "10.2.0.1";
pub(crate) const STRANGER_V6: &str = "fd00:2::1";

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address(text), port)
}

/// A BPF filesystem and instances in it.
pub(crate) struct Lab {
    bpffs: TempDir,
    opened: Vec<Settings>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        // For this test's thread and those it starts.
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of our own (root only)");
        let everywhere = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, everywhere, None::<&str>).expect("private mounts");
        let bpffs = TempDir::with_prefix("ambit-loader-").expect("a directory");
        mount(Some("bpf"), bpffs.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("a BPF filesystem");
        Self { bpffs, opened: Vec::new() }
    }

    /// A new instance.
    pub(crate) fn settings(&mut self) -> Settings {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let instance = name.parse().expect("an instance name");
        let settings = Settings { instance, bpffs: self.bpffs.path().to_owned(), cgroup: None, object: None };
        self.opened.push(settings.clone());
        settings
    }

    /// The instance that was opened last.
    pub(crate) fn last(&self) -> &Settings {
        self.opened.last().expect("an instance")
    }

    /// A new instance, with `MESH_V4` and `MESH_V6` captured.
    pub(crate) fn dataplane(&mut self) -> Dataplane {
        self.dataplane_with(None)
    }

    /// The same with the programs of another object than the embedded one.
    pub(crate) fn dataplane_with(&mut self, object: Option<PathBuf>) -> Dataplane {
        let settings = Settings { object, ..self.settings() };
        let dataplane = Dataplane::open(&settings).expect("the instance opens");
        dataplane.add_destination(address(MESH_V4)).expect("a destination");
        dataplane.add_destination(address(MESH_V6)).expect("a destination");
        dataplane.renew_lease(Lease::OpenMode, DEADLINE * 10).expect("a lease");
        dataplane
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for settings in &self.opened {
            let detached = detach(settings);
            if !std::thread::panicking() {
                detached.expect("the instance is detached");
            }
        }
        umount2(self.bpffs.path(), MntFlags::MNT_DETACH).expect("the BPF filesystem is unmounted");
    }
}

/// An unnamed network namespace.
pub(crate) struct Namespace {
    file: File,
    pub(crate) cookie: NetnsCookie,
}

impl Namespace {
    /// A new namespace with loopback up.
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (root only)");
            let file = File::open("/proc/thread-self/ns/net").expect("its file");
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            let cookie = netns_cookie(socket.as_fd()).expect("its cookie");
            ip("link set lo up");
            Self { file, cookie }
        });
        made.join().expect("a namespace")
    }

    /// Runs a closure in the namespace; its sockets stay there.
    pub(crate) fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                inside()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    pub(crate) fn listen(&self, address: &str) -> Socket {
        self.listen_at(at(address, 0))
    }

    pub(crate) fn listen_at(&self, address: SocketAddr) -> Socket {
        self.run(|| listener(address, false, Protocol::TCP))
    }

    /// A listener for both families.
    pub(crate) fn listen_dual(&self, port: u16) -> Socket {
        self.run(|| listener(at("::", port), true, Protocol::TCP))
    }

    /// A Multipath TCP listener, as some runtimes create by default.
    pub(crate) fn listen_multipath(&self, address: SocketAddr) -> Socket {
        self.run(|| listener(address, false, Protocol::MPTCP))
    }

    pub(crate) fn socket(&self, domain: Domain) -> Socket {
        self.run(|| Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).expect("a socket"))
    }

    /// Enrols the pod and sets its listeners, as a daemon does.
    pub(crate) fn enrol(&self, dataplane: &Dataplane) -> Daemon {
        let uid = format!("Kubernetes//Pod/test/{}", self.cookie);
        let number = dataplane.enrol(self.as_fd(), self.cookie, &uid).expect("the pod is enrolled");
        let trusted = PodLink { kind: LinkKind::Trusted, interface: 0, pod: [0; 6], bridge: None };
        dataplane.set_link(number, Some(&trusted)).expect("the link is set");
        let daemon = Daemon {
            number,
            outbound_v4: self.listen("127.0.0.1"),
            outbound_v6: self.listen("::1"),
            hbone_v4: self.listen("127.0.0.1"),
            hbone_v6: self.listen("::1"),
            plaintext_v4: self.listen("127.0.0.1"),
            plaintext_v6: self.listen("::1"),
        };
        dataplane.set_listeners(self.cookie, &daemon.listeners()).expect("the listeners are set");
        daemon
    }

    pub(crate) fn connect(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = self.socket(Domain::for_address(address));
        socket.connect_timeout(&address.into(), DEADLINE)?;
        Ok(socket)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn listener(address: SocketAddr, dual: bool, protocol: Protocol) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol)).expect("a socket");
    socket.set_reuse_address(true).expect("address reuse");
    if address.is_ipv6() {
        socket.set_only_v6(!dual).expect("families");
    }
    socket.bind(&address.into()).unwrap_or_else(|error| panic!("cannot bind {address}: {error}"));
    socket.listen(128).expect("listening");
    // Also for accept().
    socket.set_read_timeout(Some(DEADLINE)).expect("a time limit");
    socket
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip runs");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn port(listener: &Socket) -> u16 {
    local(listener).port()
}

pub(crate) fn local(socket: &Socket) -> SocketAddr {
    socket.local_addr().expect("a local address").as_socket().expect("an IP address")
}

/// The address that `getpeername()` returns.
pub(crate) fn peer(socket: &Socket) -> SocketAddr {
    socket.peer_addr().expect("a peer").as_socket().expect("an IP address")
}

/// The accepted socket, and the peer's address that `accept()` returned.
pub(crate) fn accept(listener: &Socket) -> (Socket, SocketAddr) {
    let (socket, peer) = listener.accept().expect("a connection arrives");
    socket.set_read_timeout(Some(DEADLINE)).expect("a time limit");
    (socket, peer.as_socket().expect("an IP address"))
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "deadline exceeded: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The number of refusals for a reason.
pub(crate) fn counter(dataplane: &Dataplane, reason: KernelReason) -> u64 {
    let counters = dataplane.counters().expect("counters");
    counters.into_iter().find(|(it, _)| *it == reason).expect("a counter for every reason").1
}

/// Asserts that both ends are connected to each other.
pub(crate) fn assert_connected(name: &str, mut client: &Socket, mut server: &Socket) {
    client.write_all(b"ping").expect("writing");
    let mut buffer = [0; 4];
    server.read_exact(&mut buffer).expect("reading");
    assert_eq!(&buffer, b"ping", "{name}");
}

/// A pod, with a link to its node.
pub(crate) struct Pod {
    pub(crate) inside: Namespace,
    pub(crate) outside: Namespace,
}

impl std::ops::Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.inside
    }
}

impl Pod {
    pub(crate) fn new() -> Self {
        let (inside, outside) = (Namespace::new(), Namespace::new());
        outside.run(|| {
            ip(&format!("link add pod0 type veth peer name eth0 netns {}", inside.path()));
            ip(&format!("addr add {NODE_V4}/24 dev pod0"));
            ip(&format!("addr add {STRANGER_V4}/24 dev pod0"));
            ip(&format!("addr add {NODE_V6}/64 dev pod0 nodad"));
            ip(&format!("addr add {STRANGER_V6}/64 dev pod0 nodad"));
            ip("link set pod0 up");
        });
        inside.run(|| {
            ip(&format!("addr add {POD_V4}/24 dev eth0"));
            ip(&format!("addr add {POD_V6}/64 dev eth0 nodad"));
            ip("link set eth0 up");
            ip(&format!("route add default via {NODE_V4}"));
            ip(&format!("-6 route add default via {NODE_V6}"));
        });
        Self { inside, outside }
    }
}

/// The listeners of a daemon in a pod.
pub(crate) struct Daemon {
    pub(crate) number: WorkloadNumber,
    pub(crate) outbound_v4: Socket,
    pub(crate) outbound_v6: Socket,
    pub(crate) hbone_v4: Socket,
    pub(crate) hbone_v6: Socket,
    pub(crate) plaintext_v4: Socket,
    pub(crate) plaintext_v6: Socket,
}

impl Daemon {
    pub(crate) fn listeners(&self) -> Listeners<'_> {
        Listeners {
            outbound_v4: Some(self.outbound_v4.as_fd()),
            outbound_v6: Some(self.outbound_v6.as_fd()),
            hbone_v4: Some(self.hbone_v4.as_fd()),
            hbone_v6: Some(self.hbone_v6.as_fd()),
            plaintext_v4: Some(self.plaintext_v4.as_fd()),
            plaintext_v6: Some(self.plaintext_v6.as_fd()),
        }
    }

    /// The listener for captured connections to this destination.
    pub(crate) fn outbound(&self, destination: SocketAddr) -> &Socket {
        if destination.ip().to_canonical().is_ipv4() { &self.outbound_v4 } else { &self.outbound_v6 }
    }

    /// Accepts a captured connection, and returns its original destination.
    pub(crate) fn captured(
        &self,
        dataplane: &Dataplane,
        destination: SocketAddr,
    ) -> (Socket, Option<SocketAddr>) {
        let (socket, _) = accept(self.outbound(destination));
        let original = dataplane.original_destination(socket.as_fd()).expect("the socket's storage");
        (socket, original.map(|captured| captured.original_destination))
    }
}
