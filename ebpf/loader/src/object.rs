//! The embedded object: loading it, and attaching its programs so that there is never a moment without.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::LazyLock;

use ambit_abi::{NetnsCookie, names};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader};

use crate::pins::{Link, Pins, inbound_link};
use crate::{Error, bpf, memory};

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
        let program: &mut SkLookup = program.try_into().map_err(failed("attach", name))?;
        let link = program.attach(netns).map_err(failed("attach", name))?;
        program.take_link(link).map(FdLink::from).map_err(failed("attach", name))
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

fn load_program(program: &mut Program, name: &'static str) -> Result<(), Error> {
    let result = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => return Err(Error::Missing(name)),
    };
    result.map_err(failed("load", name))
}

fn attach_to_cgroup(program: &mut Program, cgroup: &Path, name: &'static str) -> Result<FdLink, Error> {
    let cgroup =
        fs::File::open(cgroup).map_err(|source| Error::Cgroup { path: cgroup.to_owned(), source })?;
    let failed = failed("attach", name);
    // With links, the kernel lets several programs share a cgroup whatever the mode.
    let mode = CgroupAttachMode::Single;
    let fd_link = |_| Error::Missing("link of its own (needs kernel 5.7)");
    if let Program::SockOps(program) = program {
        let program: &mut SockOps = program;
        let link = program.attach(cgroup, mode).map_err(&failed)?;
        return program.take_link(link).map_err(&failed)?.try_into().map_err(fd_link);
    }
    let program: &mut CgroupSockAddr = program.try_into().map_err(&failed)?;
    let link = program.attach(cgroup, mode).map_err(&failed)?;
    program.take_link(link).map_err(&failed)?.try_into().map_err(fd_link)
}

/// Two programs of one hook must never run side by side: the second would take what the first left for the
/// work of an earlier connection. So an old link gets the new program, at once, and then a new name.
fn replace_or_attach(
    pins: &Pins,
    beginning: &str,
    program: &mut Program,
    name: &'static str,
    old: Option<Link>,
    attach: impl FnOnce(&mut Program) -> Result<FdLink, Error>,
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
    let link = attach(program)?;
    link.pin(&path).map(drop).map_err(|source| Error::Link { path, source: Box::new(source) })
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
