//! A foreign program on the hooks, such as those of service load balancers: it changes addresses or refuses,
//! in one network namespace only, so that the rest of the machine is not affected.

#![expect(unsafe_code, reason = "the bpf() system call, which the tests' crates do not wrap")]

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use ambit_loader::NetnsCookie;

/// The hook.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook {
    Connect,
    GetPeerName,
}

/// The program's effect.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    /// Replaces this address and port.
    Replace(SocketAddr, SocketAddr),
    /// Refuses connections to this address and port.
    Refuse(SocketAddr),
}

/// The order relative to existing programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Before = 1 << 3,
    After = 0,
}

impl Order {
    pub(crate) const BOTH: [Self; 2] = [Self::Before, Self::After];
}

/// An attached program, detached on drop.
#[derive(Debug)]
pub(crate) struct Foreign {
    link: OwnedFd,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // Closing is not enough: a child process of another test may have the descriptor open until it
        // executes.
        let mut attribute = [self.link.as_raw_fd().cast_unsigned()];
        // SAFETY: the command reads a descriptor only.
        let detached = unsafe {
            libc::syscall(libc::SYS_bpf, LINK_DETACH, attribute.as_mut_ptr(), size_of_val(&attribute))
        };
        assert!(detached == 0 || std::thread::panicking(), "detached: {}", io::Error::last_os_error());
    }
}

impl Foreign {
    pub(crate) fn attach(netns: NetnsCookie, hook: Hook, does: Does, order: Order) -> io::Result<Self> {
        let (Does::Replace(from, _) | Does::Refuse(from)) = does;
        let kind = match (hook, from.is_ipv4()) {
            (Hook::Connect, true) => CONNECT_4,
            (Hook::Connect, false) => CONNECT_6,
            (Hook::GetPeerName, true) => 29,
            (Hook::GetPeerName, false) => 30,
        };
        let program = load(kind, &code(netns, does))?;
        let link = link(&program, &File::open(cgroup()?)?, kind, order)?;
        Ok(Self { link })
    }
}

/// The root of cgroup v2, where our programs are attached, too.
pub(crate) fn cgroup() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find(|words| words.get(2) == Some(&"cgroup2"));
    Ok(found.and_then(|words| words.get(1).copied()).ok_or(io::ErrorKind::NotFound)?.into())
}

/// Attaches a program that refuses an address to a cgroup, exclusively and without a link. It ends with the
/// cgroup.
pub(crate) fn attach_alone(cgroup: &File, refused: SocketAddr) -> io::Result<()> {
    let kind = if refused.is_ipv4() { CONNECT_4 } else { CONNECT_6 };
    let program = load(kind, &code(NetnsCookie(0), Does::Refuse(refused)))?;
    let mut attribute = [cgroup.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned(), kind, 0];
    // SAFETY: the command reads descriptors only.
    let result = unsafe { libc::syscall(libc::SYS_bpf, 8, attribute.as_mut_ptr(), size_of_val(&attribute)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const LINK_DETACH: libc::c_long = 34;
const CONNECT_4: u32 = 10;
const CONNECT_6: u32 = 11;

#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

/// Offsets in the kernel's `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;
const GET_NETNS_COOKIE: i32 = 122;

fn code(netns: NetnsCookie, does: Does) -> Vec<Instruction> {
    let mov = |register, value| instruction(0xb4, register, 0, 0, value);
    let exit = instruction(0x95, 0, 0, 0, 0);
    let mut code = vec![
        instruction(0xbf, 6, 1, 0, 0),
        instruction(0x85, 0, 0, 0, GET_NETNS_COOKIE),
        instruction(0x18, 7, 0, 0, half(netns.0)),
        instruction(0, 0, 0, 0, half(netns.0 >> 32)),
    ];
    let mut unless = vec![(code.len(), instruction(0x5d, 0, 7, 0, 0))];
    code.push(unless[0].1);
    let (Does::Replace(from, _) | Does::Refuse(from)) = does;
    for (offset, word) in words(from) {
        code.push(instruction(0x61, 2, 6, offset, 0));
        unless.push((code.len(), instruction(0x56, 2, 0, 0, word)));
        code.push(unless[unless.len() - 1].1);
    }
    if let Does::Replace(_, to) = does {
        for (offset, word) in words(to) {
            code.extend([mov(2, word), instruction(0x63, 6, 2, offset, 0)]);
        }
    } else {
        code.extend([mov(0, 0), exit]);
    }
    let end = code.len();
    for (at, jump) in unless {
        let offset = i16::try_from(end - at - 1).expect("a short program");
        code[at] = Instruction { offset, ..jump };
    }
    code.extend([mov(0, 1), exit]);
    code
}

/// The lower 32 bits of a number.
const fn half(number: u64) -> i32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    i32::from_le_bytes([a, b, c, d])
}

/// Offsets and values of an address and port in the hook's context.
fn words(address: SocketAddr) -> Vec<(i16, i32)> {
    let word = |bytes: &[u8]| i32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    let mut words: Vec<(i16, i32)> = match address.ip() {
        IpAddr::V4(v4) => vec![(USER_IP4, word(&v4.octets()))],
        IpAddr::V6(v6) => {
            v6.octets().chunks(4).zip((USER_IP6..).step_by(4)).map(|(part, at)| (at, word(part))).collect()
        }
    };
    words.push((USER_PORT, i32::from(address.port().to_be())));
    words
}

/// The kernel's `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_kind: u32,
}

/// The kernel's `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_kind: u32,
    flags: u32,
    more: [u64; 2],
}

fn load(attach_kind: u32, code: &[Instruction]) -> io::Result<OwnedFd> {
    const CGROUP_SOCK_ADDR: u32 = 18;
    let mut log = vec![0_u8; 1 << 16];
    let mut attribute = Load {
        kind: CGROUP_SOCK_ADDR,
        instructions: u32::try_from(code.len()).map_err(io::Error::other)?,
        code: code.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        log_level: 1,
        log_size: 1 << 16,
        log: log.as_mut_ptr().addr() as u64,
        kernel: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        attach_kind,
    };
    let mut loaded = bpf(5, &mut attribute);
    // A signal may interrupt the verifier.
    for _ in 0..10 {
        if loaded.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            std::thread::sleep(std::time::Duration::from_millis(10));
            loaded = bpf(5, &mut attribute);
        }
    }
    loaded.map_err(|error| io::Error::other(format!("{error}: {}", String::from_utf8_lossy(&log))))
}

fn link(program: &OwnedFd, cgroup: &File, attach_kind: u32, order: Order) -> io::Result<OwnedFd> {
    let number = |descriptor: i32| descriptor.cast_unsigned();
    let mut attribute = Link {
        program: number(program.as_raw_fd()),
        target: number(cgroup.as_raw_fd()),
        attach_kind,
        flags: order as u32,
        more: [0; 2],
    };
    bpf(28, &mut attribute)
}

fn bpf<A>(command: libc::c_long, attribute: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the callers' attributes are of their commands' layouts, and their pointers are valid until the
    // call returns, which returns a new descriptor.
    unsafe {
        let result = libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<A>());
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(i32::try_from(result).map_err(io::Error::other)?))
    }
}
