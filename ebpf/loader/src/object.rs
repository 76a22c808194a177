//! The embedded object: loading it, and attaching its programs so that there is never a moment without.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{LazyLock, Once};
use std::time::Duration;

use ambit_abi::{NetnsCookie, names};
use aya::programs::{Program, ProgramError, ProgramFd};
use aya::{Ebpf, EbpfLoader};

use crate::bpf::{Hook, Order};
use crate::pins::{Link, Pins, inbound_link};
use crate::{Error, bpf, memory};

/// How often a load that was interrupted is tried again, and after how long.
const INTERRUPTIONS: usize = 10;
const AFTER_INTERRUPTION: Duration = Duration::from_millis(10);

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AMBIT_EBPF_OBJECT_PATH"));

/// Tells objects apart: FNV-1a of the bytes, in hexadecimal.
static HASH: LazyLock<String> = LazyLock::new(|| {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", OBJECT.iter().fold(0xcbf2_9ce4_8422_2325, mix))
});

/// Attaches the cgroup's programs, or puts this build's in the place of an earlier one's.
pub(crate) fn attach_cgroup(pins: &Pins, cgroup: &Path) -> Result<(), Error> {
    if !pins.has_all_maps() {
        // Programs that are still attached use maps that nobody can reach any more.
        for link in pins.all_links()? {
            link.remove()?;
        }
    }
    let mut object = None;
    for name in names::CGROUP_PROGRAMS {
        let (current, old) = split(pins.links(name)?);
        if current.is_some() && pins.has_all_maps() {
            continue;
        }
        let object = match &mut object {
            Some(object) => object,
            empty => empty.insert(load(pins, NetnsCookie(0))?),
        };
        let program = program(object, name)?;
        load_program(program, name)?;
        replace_or_attach(pins, name, program, name, old, |program| attach_to_cgroup(program, cgroup, name))?;
    }
    Ok(())
}

/// Attaches a pod's program, or puts this build's in the place of an earlier one's.
pub(crate) fn attach_inbound(pins: &Pins, netns: impl AsFd, cookie: NetnsCookie) -> Result<(), Error> {
    let beginning = inbound_link(cookie);
    let (current, old) = split(pins.links(&beginning)?);
    if current.is_some() {
        return Ok(());
    }
    let name = names::INBOUND_PROGRAM;
    let mut object = load(pins, cookie)?;
    let program = program(&mut object, name)?;
    load_program(program, name)?;
    replace_or_attach(pins, &beginning, program, name, old, |program| {
        bpf::attach(program, &netns, Hook::SocketLookup, Order::Last)
            .map_err(|source| Error::Attach { program: name, source })
    })
}

/// This build's link, and another's.
fn split(links: Vec<Link>) -> (Option<Link>, Option<Link>) {
    let (mut current, mut old): (Vec<_>, Vec<_>) = links.into_iter().partition(|link| link.is_of(&HASH));
    (current.pop(), old.pop())
}

/// Parses the object and makes its maps, or finds them pinned.
fn load(pins: &Pins, cookie: NetnsCookie) -> Result<Ebpf, Error> {
    let multipath = u8::from(Path::new("/proc/sys/net/mptcp").exists());
    let mut loader = EbpfLoader::new();
    // No program reads kernel structures.
    loader.btf(None);
    loader.override_global(names::INBOUND_COOKIE, &cookie.0, true);
    loader.override_global(names::MULTIPATH, &multipath, true);
    for name in names::MAPS {
        loader.map_pin_path(name, pins.path(name));
    }
    let loaded = loader.load(OBJECT).map_err(|error| Error::Object(Box::new(error)));
    memory::give_back();
    loaded
}

fn program<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, Error> {
    object.program_mut(name).ok_or(Error::Missing(name))
}

fn failed(operation: &'static str, program: &'static str) -> impl Fn(ProgramError) -> Error {
    move |source| Error::Program { operation, program, source: Box::new(source) }
}

/// The verifier gives up with `EAGAIN` when a signal reaches the thread; libbpf tries such a load again too.
fn load_program(program: &mut Program, name: &'static str) -> Result<(), Error> {
    for _ in 0..INTERRUPTIONS {
        match verify(program, name)? {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(AFTER_INTERRUPTION);
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
        _ => return Err(Error::Missing(name)),
    })
}

/// Before the programs of others, so that these find decided what is ours; with links, the kernel lets
/// several programs share a cgroup.
fn attach_to_cgroup(program: &ProgramFd, cgroup: &Path, name: &'static str) -> Result<OwnedFd, Error> {
    static SAID: Once = Once::new();
    let cgroup =
        fs::File::open(cgroup).map_err(|source| Error::Cgroup { path: cgroup.to_owned(), source })?;
    let hook = hook(name).ok_or(Error::Missing(name))?;
    let attached = match bpf::attach(program, &cgroup, hook, Order::First) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            SAID.call_once(|| {
                tracing::info!(
                    "this kernel has no order among programs of a cgroup: others' that are there run before \
                     ours"
                );
            });
            bpf::attach(program, &cgroup, hook, Order::Last)
        }
        attached => attached,
    };
    attached.map_err(|source| Error::Attach { program: name, source })
}

fn hook(name: &str) -> Option<Hook> {
    Some(match name {
        "connect4" => Hook::Connect4,
        "connect6" => Hook::Connect6,
        "getpeername4" => Hook::GetPeerName4,
        "getpeername6" => Hook::GetPeerName6,
        "socket_operations" => Hook::SocketOperations,
        _ => return None,
    })
}

/// Two programs of one hook must never run side by side: the second would take what the first left for the
/// work of an earlier connection. So an old link gets the new program, at once, and then a new name.
fn replace_or_attach(
    pins: &Pins,
    beginning: &str,
    program: &mut Program,
    name: &'static str,
    old: Option<Link>,
    attach: impl FnOnce(&ProgramFd) -> Result<OwnedFd, Error>,
) -> Result<(), Error> {
    let path = pins.path(&format!("{beginning}-{}", *HASH));
    if let Some(old) = old {
        if replace(&old, program, name)? {
            tracing::info!(link = beginning, "program replaced by this build's");
            return fs::rename(&old.path, &path).map_err(|source| Error::Pin {
                operation: "rename",
                path: old.path.clone(),
                source,
            });
        }
        // What it was attached to is gone.
        old.remove()?;
    }
    let link = attach(program.fd().map_err(failed("find", name))?)?;
    bpf::pin(&link, &path).map_err(|source| Error::Pin { operation: "pin", path, source })
}

/// Whether the link still had something to be attached to.
fn replace(old: &Link, program: &Program, name: &'static str) -> Result<bool, Error> {
    let pin = |operation, source| Error::Pin { operation, path: old.path.clone(), source };
    let link = bpf::open_pin(&old.path).map_err(|source| pin("open the link", source))?;
    let program = program.fd().map_err(failed("find", name))?;
    match bpf::replace_program(&link, program) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
        Err(error) => Err(pin("replace the program of", io::Error::other(error))),
    }
}
