//! The system calls that have no safe wrapper: entering a namespace between fork and exec, packet-socket
//! statistics, bpf(2)'s listings.
#![expect(unsafe_code, reason = "thin wrappers around system calls")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

/// Makes the command's process enter a network namespace before it runs the program.
pub(crate) fn run_inside(command: &mut Command, namespace: Arc<File>) {
    let enter = move || setns(&*namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    // SAFETY: between fork and exec only setns is called, which is async-signal-safe and allocates nothing.
    unsafe { command.pre_exec(enter) };
}

/// How many frames a packet socket has lost since it was asked last.
pub(crate) fn packets_lost(socket: BorrowedFd<'_>) -> io::Result<u32> {
    /// `struct tpacket_stats`.
    #[repr(C)]
    #[derive(Default)]
    struct Statistics {
        packets: u32,
        drops: u32,
    }
    let mut statistics = Statistics::default();
    let mut size = u32::try_from(size_of::<Statistics>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `size` bytes into `statistics`, which has that size and takes any
    // bits.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut size,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics.drops) }
}

/// The commands of bpf(2) that are used here.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bpf {
    Delete = 3,
    NextKey = 4,
    ObjectGet = 7,
    ProgramFdById = 13,
    MapFdById = 14,
    InfoByFd = 15,
    LinkFdById = 30,
}

/// Calls bpf(2) with an attribute of 32-bit words: enough for what is looked up here.
fn bpf(command: Bpf, attribute: &mut [u64; 4]) -> io::Result<i64> {
    // SAFETY: `attribute` is 32 bytes that live through the call; pointers in it point to memory that its
    // caller keeps.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, command as i32, attribute.as_mut_ptr(), size_of_val(attribute))
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn bpf_fd(command: Bpf, attribute: &mut [u64; 4]) -> io::Result<OwnedFd> {
    let fd = i32::try_from(bpf(command, attribute)?).map_err(io::Error::other)?;
    // SAFETY: these commands return a new descriptor without another owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a pinned object.
pub(crate) fn bpf_pinned(path: &std::ffi::CStr) -> io::Result<OwnedFd> {
    bpf_fd(Bpf::ObjectGet, &mut [path.as_ptr() as u64, 0, 0, 0])
}

/// Opens an object by its number.
pub(crate) fn bpf_by_id(kind: Bpf, id: u32) -> io::Result<OwnedFd> {
    bpf_fd(kind, &mut [u64::from(id), 0, 0, 0])
}

/// The first words of an object's description.
pub(crate) fn bpf_info(object: BorrowedFd<'_>) -> io::Result<[u32; 64]> {
    let mut info = [0_u32; 64];
    let fd = u64::try_from(object.as_raw_fd()).map_err(io::Error::other)?;
    let size = u64::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    bpf(Bpf::InfoByFd, &mut [fd | size << 32, info.as_mut_ptr() as u64, 0, 0])?;
    Ok(info)
}

/// The key after another one, or the first; false after the last.
pub(crate) fn bpf_next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let fd = u64::try_from(map.as_raw_fd()).map_err(io::Error::other)?;
    let key = key.map_or(0, |key| key.as_ptr() as u64);
    match bpf(Bpf::NextKey, &mut [fd, key, next.as_mut_ptr() as u64, 0]) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes an entry.
pub(crate) fn bpf_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let fd = u64::try_from(map.as_raw_fd()).map_err(io::Error::other)?;
    bpf(Bpf::Delete, &mut [fd, key.as_ptr() as u64, 0, 0]).map(drop)
}
