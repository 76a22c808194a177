//! The eBPF object: loading it, and attaching its programs such that hooks are never without one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ambit_abi::{NetnsCookie, names};
use aya::programs::{Program, ProgramError, ProgramFd};
use aya::{Ebpf, EbpfLoader};
use parking_lot::Mutex;

use crate::bpf::{Hook, Order};
use crate::held::Held;
use crate::pins::{Link, Pins, inbound_link, link_program};
use crate::{Error, Settings, bpf, memory};

/// Attempts to load a program that is interrupted by signals, and the pause between them.
const LOAD_ATTEMPTS: usize = 10;
const LOAD_PAUSE: Duration = Duration::from_millis(10);

/// Whether the kernel orders the programs of a cgroup, as far as is known.
static ORDERED: AtomicBool = AtomicBool::new(true);

static EMBEDDED: &[u8] = aya::include_bytes_aligned!(env!("AMBIT_EBPF_OBJECT_PATH"));

/// An object file with the kernel programs.
#[derive(Debug)]
pub(crate) struct Object {
    bytes: Cow<'static, [u8]>,
    /// Identifies the object: FNV-1a of the bytes, in hexadecimal.
    hash: String,
}

impl Object {
    /// The embedded object, or the one that the settings name.
    pub(crate) fn open(settings: &Settings) -> Result<Self, Error> {
        let bytes = match &settings.object {
            None => Cow::Borrowed(EMBEDDED),
            Some(path) => {
                Cow::Owned(fs::read(path).map_err(|source| Error::ObjectFile { path: path.clone(), source })?)
            }
        };
        let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix));
        Ok(Self { bytes, hash })
    }

    /// Whether its programs log their decisions.
    pub(crate) fn logs(&self) -> bool {
        self.bytes.windows(names::LOG.len()).any(|window| window == names::LOG.as_bytes())
    }

    /// Attaches the programs on the cgroup, or replaces those of another build.
    pub(crate) fn attach_cgroup(&self, pins: &Pins, cgroup: &Path) -> Result<(), Error> {
        if !pins.has_all_maps() {
            // This build's programs that are still attached use maps without pins, which no daemon can open.
            // Those of another build, which may lack a map that it did not have, are replaced without a gap.
            for link in pins.all_links()?.into_iter().filter(|link| link.is_of(&self.hash)) {
                link.remove()?;
            }
        }
        let mut loaded = None;
        for name in names::CGROUP_PROGRAMS {
            let (current, old) = self.split(pins.links(name)?);
            if current.is_some() && pins.has_all_maps() {
                continue;
            }
            let loaded = match &mut loaded {
                Some(loaded) => loaded,
                empty => empty.insert(self.load(pins, NetnsCookie(0))?),
            };
            let program = program(loaded, name)?;
            load_program(program, name)?;
            let attach = |program: &ProgramFd| attach_to_cgroup(program, cgroup, name);
            self.replace_or_attach(pins, name, program, name, old, attach)?;
        }
        Ok(())
    }

    /// The links of this build's programs on the cgroup.
    pub(crate) fn cgroup_links(&self, pins: &Pins) -> Result<BTreeMap<&'static str, Held>, Error> {
        let held = |name: &'static str| Ok((name, Held::open(self.path(pins, name))?));
        names::CGROUP_PROGRAMS.into_iter().map(held).collect()
    }

    /// The link of this build's program in a pod.
    pub(crate) fn inbound_link(&self, pins: &Pins, cookie: NetnsCookie) -> Result<Held, Error> {
        Held::open(self.path(pins, &inbound_link(cookie)))
    }

    /// The link of this build's program on an interface at the node's end of a pod's link.
    pub(crate) fn shared_link(&self, pins: &Pins, name: &str, interface: u32) -> Result<Held, Error> {
        Held::open(self.path(pins, &link_program(name, interface)))
    }

    fn path(&self, pins: &Pins, prefix: &str) -> PathBuf {
        pins.path(&format!("{prefix}-{}", self.hash))
    }

    /// Attaches a pod's program, or replaces that of another build.
    pub(crate) fn attach_inbound(
        &self,
        pins: &Pins,
        netns: impl AsFd,
        cookie: NetnsCookie,
    ) -> Result<(), Error> {
        let prefix = inbound_link(cookie);
        let (current, old) = self.split(pins.links(&prefix)?);
        if current.is_some() {
            return Ok(());
        }
        let name = names::INBOUND_PROGRAM;
        let mut loaded = self.load(pins, cookie)?;
        let program = program(&mut loaded, name)?;
        load_program(program, name)?;
        self.replace_or_attach(pins, &prefix, program, name, old, |program| {
            attach_to_namespace(program, &netns)
        })
    }

    /// Attaches the programs of a shared link to the interface at the node's end, or replaces those of
    /// another build. The calling thread must be in the node's network namespace.
    pub(crate) fn attach_link(
        &self,
        pins: &Pins,
        held: &Mutex<Option<Ebpf>>,
        interface: u32,
    ) -> Result<(), Error> {
        for name in names::LINK_PROGRAMS {
            let hook = hook(name).ok_or(Error::Missing(name))?;
            let prefix = link_program(name, interface);
            let (current, old) = self.split(pins.links(&prefix)?);
            if let Some(current) = current {
                if is_attached(&current, interface, hook) {
                    continue;
                }
                // Of an interface that is gone, or detached by somebody.
                current.remove()?;
            }
            let mut held = held.lock();
            let loaded = match &mut *held {
                Some(loaded) => loaded,
                empty => empty.insert(self.load_link_programs(pins)?),
            };
            let program = program(loaded, name)?;
            self.replace_or_attach(pins, &prefix, program, name, old, |program| {
                attach_to_interface(program, interface, name, hook)
            })?;
        }
        Ok(())
    }

    /// They are the same on every link, so they are loaded once.
    fn load_link_programs(&self, pins: &Pins) -> Result<Ebpf, Error> {
        let mut loaded = self.load(pins, NetnsCookie(0))?;
        for name in names::LINK_PROGRAMS {
            load_program(program(&mut loaded, name)?, name)?;
        }
        Ok(loaded)
    }

    /// Parses the object and creates its maps, or opens the pinned ones.
    pub(crate) fn load(&self, pins: &Pins, cookie: NetnsCookie) -> Result<Ebpf, Error> {
        let multipath = u8::from(Path::new("/proc/sys/net/mptcp").exists());
        let mut loader = EbpfLoader::new();
        // No program reads kernel structures.
        loader.btf(None);
        loader.override_global(names::INBOUND_COOKIE, &cookie.0, true);
        loader.override_global(names::MULTIPATH, &multipath, true);
        for name in names::MAPS.into_iter().chain([names::LOG]) {
            loader.map_pin_path(name, pins.path(name));
        }
        let loaded = loader.load(&self.bytes).map_err(|error| Error::Object(Box::new(error)));
        memory::trim();
        loaded
    }

    /// This build's link, and another build's.
    fn split(&self, links: Vec<Link>) -> (Option<Link>, Option<Link>) {
        let (mut current, mut old): (Vec<_>, Vec<_>) =
            links.into_iter().partition(|link| link.is_of(&self.hash));
        (current.pop(), old.pop())
    }

    /// Two programs of one hook must never run one after the other: the second would treat state that the
    /// first left in the socket as that of an earlier connection. So the program behind an old link is
    /// replaced, and then the link is renamed.
    fn replace_or_attach(
        &self,
        pins: &Pins,
        prefix: &str,
        program: &mut Program,
        name: &'static str,
        old: Option<Link>,
        attach: impl FnOnce(&ProgramFd) -> Result<OwnedFd, Error>,
    ) -> Result<(), Error> {
        let path = self.path(pins, prefix);
        if let Some(old) = old {
            if replace(&old, program, name)? {
                tracing::info!(link = prefix, "eBPF program replaced");
                return fs::rename(&old.path, &path).map_err(|source| Error::Pin {
                    operation: "rename pin",
                    path: old.path.clone(),
                    source,
                });
            }
            // Its cgroup or network namespace is gone.
            old.remove()?;
        }
        let link = attach(program.fd().map_err(failed("get", name))?)?;
        bpf::pin(&link, &path).map_err(|source| Error::Pin { operation: "pin link", path, source })
    }
}

/// Whether a pinned link is on a hook of this interface.
fn is_attached(link: &Link, interface: u32, hook: Hook) -> bool {
    let program = bpf::open_pin(&link.path).and_then(|link| bpf::link_program(&link));
    let attached = bpf::interface_programs(interface, hook);
    program.is_ok_and(|program| attached.is_ok_and(|attached| attached.contains(&program)))
}

fn program<'a>(loaded: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, Error> {
    loaded.program_mut(name).ok_or(Error::Missing(name))
}

fn failed(operation: &'static str, program: &'static str) -> impl Fn(ProgramError) -> Error {
    move |source| Error::Program { operation, program, source: Box::new(source) }
}

/// The verifier returns `EAGAIN` when a signal reaches the thread. libbpf repeats such a load, too.
fn load_program(program: &mut Program, name: &'static str) -> Result<(), Error> {
    for _ in 0..LOAD_ATTEMPTS {
        match verify(program, name)? {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(LOAD_PAUSE);
            }
            result => return result.map_err(failed("load", name)),
        }
    }
    verify(program, name)?.map_err(failed("load", name))
}

fn verify(program: &mut Program, name: &'static str) -> Result<Result<(), ProgramError>, Error> {
    Ok(match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(Error::Missing(name)),
    })
}

/// Attaches the program of a pod.
pub(crate) fn attach_to_namespace(program: &impl AsFd, netns: &impl AsFd) -> Result<OwnedFd, Error> {
    bpf::attach(program, netns, Hook::SocketLookup, Order::Last)
        .map_err(|source| Error::Attach { program: names::INBOUND_PROGRAM, source })
}

/// Attaches a program of a shared link. It comes before those of others: see `docs/decisions/280`.
pub(crate) fn attach_to_interface(
    program: &impl AsFd,
    interface: u32,
    name: &'static str,
    hook: Hook,
) -> Result<OwnedFd, Error> {
    bpf::attach_interface(program, interface, hook, Order::First)
        .map_err(|source| Error::Attach { program: name, source })
}

/// Attaches before the programs of others, so that these see the destination after our decision. With links,
/// the kernel lets several programs share a cgroup.
pub(crate) fn attach_to_cgroup(
    program: &impl AsFd,
    cgroup: &Path,
    name: &'static str,
) -> Result<OwnedFd, Error> {
    let cgroup =
        fs::File::open(cgroup).map_err(|source| Error::Cgroup { path: cgroup.to_owned(), source })?;
    let hook = hook(name).ok_or(Error::Missing(name))?;
    let attached = match bpf::attach(program, &cgroup, hook, Order::First) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            if ORDERED.swap(false, Ordering::Relaxed) {
                tracing::info!(
                    "kernel does not support ordering of cgroup programs; existing programs run before ours"
                );
            }
            bpf::attach(program, &cgroup, hook, Order::Last)
        }
        attached => attached,
    };
    attached.map_err(|source| Error::Attach { program: name, source })
}

/// Whether the kernel orders the programs of a cgroup, as far as is known.
pub(crate) fn is_ordered() -> bool {
    ORDERED.load(Ordering::Relaxed)
}

/// The hook of a program on the cgroup.
pub(crate) fn hook(name: &str) -> Option<Hook> {
    Some(match name {
        "connect4" => Hook::Connect4,
        "connect6" => Hook::Connect6,
        "getpeername4" => Hook::GetPeerName4,
        "getpeername6" => Hook::GetPeerName6,
        "socket_operations" => Hook::SocketOperations,
        "from_pod" => Hook::LinkIngress,
        "to_pod" => Hook::LinkEgress,
        _ => return None,
    })
}

/// Replaces the program behind a link; false if what the link was attached to is gone.
fn replace(old: &Link, program: &Program, name: &'static str) -> Result<bool, Error> {
    let pin = |operation, source| Error::Pin { operation, path: old.path.clone(), source };
    let link = bpf::open_pin(&old.path).map_err(|source| pin("open link", source))?;
    let program = program.fd().map_err(failed("get", name))?;
    match bpf::replace_program(&link, program) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(pin("replace the program of link", io::Error::other(error))),
    }
}
