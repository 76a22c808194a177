//! The `bpf()` system call, as far as aya does not offer it on shared references or at all: map elements,
//! links in an order, and replacing the program of a link.

#![expect(unsafe_code, reason = "thin wrappers around one system call")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ambit_abi::{
    Address, Flow, FlowKey, Handoff, ListenerKey, NetnsCookie, Place, Pod, PodName, PortKey, PortRule,
    Service, Slot, SlotKey, Socket, Towards, Tuple, WorkloadNumber, Yes,
};

/// Values that are only bytes: no padding, no invalid patterns.
///
/// # Safety
/// As it says.
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($kind:ty),*) => { $(
        // SAFETY: integers, or `repr(C)` structures of integers with explicit padding (sizes asserted in `ambit-abi`).
        unsafe impl Plain for $kind {}
    )* };
}
plain!(
    u8,
    u32,
    u64,
    i32,
    Address,
    Flow,
    FlowKey,
    Handoff,
    ListenerKey,
    NetnsCookie,
    Place,
    Pod,
    PodName,
    PortKey,
    PortRule,
    Service,
    Slot,
    SlotKey,
    Socket,
    Towards,
    Tuple,
    WorkloadNumber,
    Yes
);

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// What an update may find.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Update {
    Any = 0,
    Absent = 1,
    Present = 2,
}

/// The kernel's `union bpf_attr`, as its element commands read it.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Element {
    fn new<K: Plain>(map: &impl AsFd, key: *const K) -> Self {
        Self { map: number(map), padding: 0, key: key.addr() as u64, value: 0, flags: 0 }
    }
}

/// As the batch commands read it.
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

/// As `BPF_OBJ_GET` reads it.
#[repr(C)]
struct Object {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// As the link commands read it.
#[repr(C)]
struct Link {
    descriptor: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// As `BPF_LINK_CREATE` reads it.
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

/// Where programs are attached: the kernel's `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook {
    SocketOperations = 3,
    Connect4 = 10,
    Connect6 = 11,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    SocketLookup = 36,
}

/// Where a program stands among the others of its hook and cgroup.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// After those that are there.
    Last = 0,
    /// Before all others; since Linux 6.17.
    First = 1 << 3,
}

fn number(descriptor: &impl AsFd) -> u32 {
    descriptor.as_fd().as_raw_fd().cast_unsigned()
}

/// # Safety
/// The attribute must be what the command reads, and its pointers valid for what the command does with them.
unsafe fn call<A>(command: libc::c_long, attribute: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: by the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A zeroed value for the kernel to write into.
fn zeroed<T: Plain>() -> T {
    // SAFETY: plain values are valid for every pattern of bytes.
    unsafe { std::mem::zeroed() }
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The entry's value; the map's sizes are those of the types.
pub(crate) fn lookup<K: Plain, V: Plain>(map: &impl AsFd, key: &K) -> io::Result<Option<V>> {
    let mut value = zeroed::<V>();
    let mut element = Element { value: (&raw mut value).addr() as u64, ..Element::new(map, key) };
    // SAFETY: key and value live until the call returns, and have the map's sizes.
    absent_is_none(unsafe { call(MAP_LOOKUP_ELEM, &mut element) }).map(|found| found.map(|_| value))
}

/// The values that each possible CPU has for an entry.
pub(crate) fn lookup_each_cpu(map: &impl AsFd, key: u32, cpus: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0_u64; cpus];
    let mut element =
        Element { value: values.as_mut_ptr().addr() as u64, ..Element::new(map, &raw const key) };
    // SAFETY: the kernel writes eight bytes for each possible CPU.
    unsafe { call(MAP_LOOKUP_ELEM, &mut element) }?;
    Ok(values)
}

/// Writes an entry.
pub(crate) fn update<K: Plain, V: Plain>(
    map: &impl AsFd,
    key: &K,
    value: &V,
    update: Update,
) -> io::Result<()> {
    let value = (&raw const *value).addr() as u64;
    let mut element = Element { value, flags: update as u64, ..Element::new(map, key) };
    // SAFETY: key and value live until the call returns, and have the map's sizes.
    unsafe { call(MAP_UPDATE_ELEM, &mut element) }.map(drop)
}

/// Removes an entry; whether there was one.
pub(crate) fn delete<K: Plain>(map: &impl AsFd, key: &K) -> io::Result<bool> {
    let mut element = Element::new(map, key);
    // SAFETY: the key lives until the call returns, and has the map's size.
    absent_is_none(unsafe { call(MAP_DELETE_ELEM, &mut element) }).map(|found| found.is_some())
}

/// The key after this one, or the first.
pub(crate) fn next_key<K: Plain>(map: &impl AsFd, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = zeroed::<K>();
    let key = key.map_or(std::ptr::null(), |key| &raw const *key);
    let mut element = Element { value: (&raw mut next).addr() as u64, ..Element::new(map, key) };
    // SAFETY: both keys live until the call returns, and have the map's size.
    absent_is_none(unsafe { call(MAP_GET_NEXT_KEY, &mut element) }).map(|found| found.map(|_| next))
}

/// A hash map's entries, many in one call. What comes and goes meanwhile may be missing or not.
pub(crate) fn entries<K: Plain, V: Plain>(map: &impl AsFd) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    let mut room = 1024;
    let mut place: Option<u64> = None;
    loop {
        let (mut keys, mut values) = (vec![zeroed::<K>(); room], vec![zeroed::<V>(); room]);
        let mut next = 0_u64;
        let mut batch = Batch {
            from: place.as_ref().map_or(0, |place| (&raw const *place).addr() as u64),
            to: (&raw mut next).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: u32::try_from(room).map_err(io::Error::other)?,
            map: number(map),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: there is room for as many keys and values as `count` says, and places are four bytes.
        let result = unsafe { call(MAP_LOOKUP_BATCH, &mut batch) };
        match result.as_ref().map_err(io::Error::raw_os_error) {
            Err(Some(libc::ENOSPC)) => {
                // One bucket holds more than that.
                room *= 2;
                continue;
            }
            Err(code) if code != Some(libc::ENOENT) => return result.map(|_| entries),
            _ => {}
        }
        entries.extend(keys.into_iter().zip(values).take(batch.count as usize));
        if result.is_err() {
            return Ok(entries);
        }
        place = Some(next);
    }
}

/// Opens what is pinned there.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut object = Object { path: path.as_ptr().addr() as u64, descriptor: 0, flags: 0 };
    // SAFETY: the path lives until the call returns, which gives a new descriptor that nobody else owns.
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
    let mut attribute = NewLink {
        program: number(program),
        target: number(target),
        hook: hook as u32,
        flags: order as u32,
        relative: 0,
        padding: 0,
        revision: 0,
    };
    // SAFETY: the command reads descriptors only, and gives a new descriptor that nobody else owns.
    unsafe {
        let descriptor = call(LINK_CREATE, &mut attribute)?;
        let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Pins an object.
pub(crate) fn pin(object: &impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = Object { path: path.as_ptr().addr() as u64, descriptor: number(object), flags: 0 };
    // SAFETY: the path lives until the call returns.
    unsafe { call(OBJ_PIN, &mut attribute) }.map(drop)
}

/// Puts another program behind a link, without a moment in between.
pub(crate) fn replace_program(link: &impl AsFd, program: &impl AsFd) -> io::Result<()> {
    let mut attribute = Link { descriptor: number(link), program: number(program), flags: 0, old_program: 0 };
    // SAFETY: the command reads descriptors only.
    unsafe { call(LINK_UPDATE, &mut attribute) }.map(drop)
}

/// Takes a link's program from where it is attached, whoever else holds the link.
pub(crate) fn detach_link(link: &impl AsFd) -> io::Result<()> {
    let mut attribute = Link { descriptor: number(link), program: 0, flags: 0, old_program: 0 };
    // SAFETY: the command reads a descriptor only. It insists on zeroes after the first field.
    unsafe { call(LINK_DETACH, &mut attribute) }.map(drop)
}
