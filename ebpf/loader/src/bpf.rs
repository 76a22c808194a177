//! The `bpf()` system call, where aya has no function for it or none that takes shared references: map
//! elements, ordered links, and replacing the program of a link.

#![expect(unsafe_code, reason = "thin wrappers around one system call")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytemuck::Pod;

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// Condition of an update.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Update {
    /// None.
    Any = 0,
    /// The entry must not exist.
    Absent = 1,
    /// The entry must exist.
    Present = 2,
}

/// The kernel's `union bpf_attr` for commands on elements.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Element {
    fn new<K: Pod>(map: &impl AsFd, key: *const K) -> Self {
        Self { map: number(map), padding: 0, key: key.addr() as u64, value: 0, flags: 0 }
    }
}

/// The same for commands on batches.
#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// The same for `BPF_OBJ_GET` and `BPF_OBJ_PIN`.
#[repr(C)]
struct Object {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The same for commands on links.
#[repr(C)]
struct Link {
    descriptor: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct NewLink {
    program: u32,
    target: u32,
    hook: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

/// The same for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    hook: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// The same for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// The same for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoRequest {
    descriptor: u32,
    length: u32,
    address: u64,
}

/// The kernel's `struct bpf_link_info`, as far as it concerns cgroups and network namespaces.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    /// The cgroup's number in eight bytes; or the namespace's inode in four, then the hook. 0: detached.
    target: [u32; 2],
    rest: [u32; 10],
}

/// The kernel's `struct bpf_prog_info` up to the name.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ProgramInfo {
    before: [u32; 16],
    name: [u8; 16],
}

/// What a link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkState {
    /// The number of its program.
    pub(crate) program: u32,
    /// Whether it is attached to something.
    pub(crate) attached: bool,
}

/// The kernel's `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook {
    SocketOperations = 3,
    Connect4 = 10,
    Connect6 = 11,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    SocketLookup = 36,
    /// Since Linux 6.6, as the next.
    LinkIngress = 46,
    LinkEgress = 47,
}

/// The order of programs of one hook and cgroup.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// After existing programs.
    Last = 0,
    /// Before all other programs; since Linux 6.17.
    First = 1 << 3,
}

fn number(descriptor: &impl AsFd) -> u32 {
    descriptor.as_fd().as_raw_fd().cast_unsigned()
}

/// # Safety
/// The attribute must be of the command's layout, and its pointers valid for the command.
unsafe fn call<A>(command: libc::c_long, attribute: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the caller's obligation.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The entry's value. The map's sizes must be those of the types.
pub(crate) fn lookup<K: Pod, V: Pod>(map: &impl AsFd, key: &K) -> io::Result<Option<V>> {
    let mut value = V::zeroed();
    let mut element = Element { value: (&raw mut value).addr() as u64, ..Element::new(map, key) };
    // SAFETY: key and value live until the call returns, and have the map's sizes.
    absent_is_none(unsafe { call(MAP_LOOKUP_ELEM, &mut element) }).map(|found| found.map(|_| value))
}

/// An entry's values of all possible CPUs.
pub(crate) fn lookup_each_cpu(map: &impl AsFd, key: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0_u64; cpus];
    let mut element =
        Element { value: values.as_mut_ptr().addr() as u64, ..Element::new(map, &raw const key) };
    // SAFETY: the kernel writes eight bytes for each possible CPU.
    unsafe { call(MAP_LOOKUP_ELEM, &mut element) }?;
    Ok(values)
}

/// Writes an entry.
pub(crate) fn update<K: Pod, V: Pod>(map: &impl AsFd, key: &K, value: &V, update: Update) -> io::Result<()> {
    let value = (&raw const *value).addr() as u64;
    let mut element = Element { value, flags: update as u64, ..Element::new(map, key) };
    // SAFETY: key and value live until the call returns, and have the map's sizes.
    unsafe { call(MAP_UPDATE_ELEM, &mut element) }.map(drop)
}

/// Removes an entry, and returns whether there was one.
pub(crate) fn delete<K: Pod>(map: &impl AsFd, key: &K) -> io::Result<bool> {
    let mut element = Element::new(map, key);
    // SAFETY: the key lives until the call returns, and has the map's size.
    absent_is_none(unsafe { call(MAP_DELETE_ELEM, &mut element) }).map(|found| found.is_some())
}

/// The key after this one, or the first key.
pub(crate) fn next_key<K: Pod>(map: &impl AsFd, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::zeroed();
    let key = key.map_or(std::ptr::null(), |key| &raw const *key);
    let mut element = Element { value: (&raw mut next).addr() as u64, ..Element::new(map, key) };
    // SAFETY: both keys live until the call returns, and have the map's size.
    absent_is_none(unsafe { call(MAP_GET_NEXT_KEY, &mut element) }).map(|found| found.map(|_| next))
}

/// A hash map's entries, read in batches. One that is inserted or removed meanwhile may be missing.
pub(crate) fn entries<K: Pod, V: Pod>(map: &impl AsFd) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    let mut position = Some(Position::default());
    while let Some(at) = position {
        let (batch, next) = batch(map, at)?;
        entries.extend(batch);
        position = next;
    }
    Ok(entries)
}

/// Where the next batch of a hash map begins.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position(Option<u64>);

/// A batch of entries.
pub(crate) type Entries<K, V> = Vec<(K, V)>;

/// About a thousand of a hash map's entries, and where the next ones begin: nowhere after the last.
pub(crate) fn batch<K: Pod, V: Pod>(
    map: &impl AsFd,
    Position(position): Position,
) -> io::Result<(Entries<K, V>, Option<Position>)> {
    let mut room = 1024;
    loop {
        let (mut keys, mut values) = (vec![K::zeroed(); room], vec![V::zeroed(); room]);
        let mut next = 0_u64;
        let mut batch = Batch {
            from: position.as_ref().map_or(0, |position| (&raw const *position).addr() as u64),
            to: (&raw mut next).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: u32::try_from(room).map_err(io::Error::other)?,
            map: number(map),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: there is room for `count` keys and values, and positions are four bytes.
        let result = unsafe { call(MAP_LOOKUP_BATCH, &mut batch) };
        match result.as_ref().map_err(io::Error::raw_os_error) {
            Err(Some(libc::ENOSPC)) => {
                // One bucket has more entries.
                room *= 2;
                continue;
            }
            Err(code) if code != Some(libc::ENOENT) => {
                return Err(result.err().unwrap_or_else(io::Error::last_os_error));
            }
            _ => {}
        }
        let entries = keys.into_iter().zip(values).take(batch.count as usize).collect();
        return Ok((entries, result.is_ok().then_some(Position(Some(next)))));
    }
}

/// Opens a pin.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut object = Object { path: path.as_ptr().addr() as u64, descriptor: 0, flags: 0 };
    // SAFETY: the path lives until the call returns, which returns a new descriptor.
    unsafe {
        let descriptor = call(OBJ_GET, &mut object)?;
        let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Attaches a program to a hook of a cgroup or network namespace.
pub(crate) fn attach(
    program: &impl AsFd,
    target: &impl AsFd,
    hook: Hook,
    order: Order,
) -> io::Result<OwnedFd> {
    new_link(program, number(target), hook, order)
}

/// Attaches a program to a hook of an interface in the calling thread's network namespace.
pub(crate) fn attach_interface(
    program: &impl AsFd,
    interface: u32,
    hook: Hook,
    order: Order,
) -> io::Result<OwnedFd> {
    new_link(program, interface, hook, order)
}

fn new_link(program: &impl AsFd, target: u32, hook: Hook, order: Order) -> io::Result<OwnedFd> {
    let mut attribute = NewLink {
        program: number(program),
        target,
        hook: hook as u32,
        flags: order as u32,
        relative: 0,
        padding: 0,
        revision: 0,
    };
    // SAFETY: the command reads descriptors only, and returns a new descriptor.
    unsafe {
        let descriptor = call(LINK_CREATE, &mut attribute)?;
        let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// The ids of the programs on a hook of an interface in the calling thread's network namespace.
pub(crate) fn interface_programs(interface: u32, hook: Hook) -> io::Result<Vec<u32>> {
    // More than the kernel lets attach (64).
    let mut programs = vec![0_u32; 128];
    let mut query = Query {
        target: interface,
        hook: hook as u32,
        programs: programs.as_mut_ptr().addr() as u64,
        count: u32::try_from(programs.len()).map_err(io::Error::other)?,
        ..Query::default()
    };
    // SAFETY: there is room for `count` ids.
    unsafe { call(PROG_QUERY, &mut query) }?;
    programs.truncate(query.count as usize);
    Ok(programs)
}

/// The id of the program behind a link.
pub(crate) fn link_program(link: &impl AsFd) -> io::Result<u32> {
    let info: LinkInfo = info(link)?;
    Ok(info.program)
}

/// What a link on a cgroup, a network namespace or an interface does.
pub(crate) fn link_state(link: &impl AsFd) -> io::Result<LinkState> {
    const CGROUP: u32 = 3;
    let info: LinkInfo = info(link)?;
    // A cgroup's number has 64 bits; the others say with 32 bits where they are, and then of what type.
    let [first, second] = info.target;
    let attached = first != 0 || (info.kind == CGROUP && second != 0);
    Ok(LinkState { program: info.program, attached })
}

/// The name of a program, cut by the kernel to 15 bytes.
pub(crate) fn program_name(program: u32) -> io::Result<String> {
    let info: ProgramInfo = info(&program_by_number(program)?)?;
    let length = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
    Ok(String::from_utf8_lossy(&info.name[..length]).into_owned())
}

fn info<T: Pod>(object: &impl AsFd) -> io::Result<T> {
    let mut info = T::zeroed();
    let length = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut request =
        InfoRequest { descriptor: number(object), length, address: (&raw mut info).addr() as u64 };
    // SAFETY: the kernel writes at most `length` bytes.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut request) }?;
    Ok(info)
}

/// Opens a program by the kernel's number.
pub(crate) fn program_by_number(program: u32) -> io::Result<OwnedFd> {
    let mut request = ById { id: program, next: 0, flags: 0 };
    // SAFETY: the command returns a new descriptor.
    unsafe {
        let descriptor = call(PROG_GET_FD_BY_ID, &mut request)?;
        let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// The numbers of the programs on a hook of a cgroup, in the order in which they run.
pub(crate) fn programs(cgroup: &impl AsFd, hook: Hook) -> io::Result<Vec<u32>> {
    let mut numbers = [0_u32; 64];
    let mut query = Query {
        target: number(cgroup),
        hook: hook as u32,
        programs: numbers.as_mut_ptr().addr() as u64,
        count: u32::try_from(numbers.len()).map_err(io::Error::other)?,
        ..Query::default()
    };
    // SAFETY: there is room for `count` numbers.
    unsafe { call(PROG_QUERY, &mut query) }?;
    Ok(numbers.into_iter().take(query.count as usize).collect())
}

/// Pins an object.
pub(crate) fn pin(object: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = Object { path: path.as_ptr().addr() as u64, descriptor: number(object), flags: 0 };
    // SAFETY: the path lives until the call returns.
    unsafe { call(OBJ_PIN, &mut attribute) }.map(drop)
}

/// Replaces the program behind a link atomically.
pub(crate) fn replace_program(link: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let mut attribute = Link { descriptor: number(link), program: number(program), flags: 0, old_program: 0 };
    // SAFETY: the command reads descriptors only.
    unsafe { call(LINK_UPDATE, &mut attribute) }.map(drop)
}

/// Detaches a link's program, also if others have the link open.
pub(crate) fn detach_link(link: &impl AsFd) -> io::Result<()> {
    let mut attribute = Link { descriptor: number(link), program: 0, flags: 0, old_program: 0 };
    // SAFETY: the command reads a descriptor only. It requires zeroes after the first field.
    unsafe { call(LINK_DETACH, &mut attribute) }.map(drop)
}
