//! Records for the daemon, in a ring buffer. The daemon polls it and is woken only when the buffer fills up.

use ambit_abi::{
    Accepted, Address, KernelReason, NetnsCookie, Path, RecordEntry, RecordKind, SocketAddress, Tuple,
    WorkloadNumber, limits,
};
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP};

use crate::clock::now;
use crate::maps::{LOCALS, RECORDS, count};

/// Bytes in the buffer above which the daemon is woken.
const WAKE_ABOVE: u64 = limits::RECORDS as u64 / 4;

/// The workload that probably has the address: for records, never for decisions.
#[inline(always)]
pub fn probable_workload(address: Address) -> WorkloadNumber {
    LOCALS.get_ptr(address).map_or(WorkloadNumber::NONE, |number| {
        // SAFETY: the kernel keeps the entry until the program ends.
        unsafe { number.read_volatile() }
    })
}

/// Writes a record in place: a program's stack is small.
#[inline(always)]
fn write(fill: impl FnOnce(*mut RecordEntry)) {
    let Some(mut entry) = RECORDS.reserve::<RecordEntry>(0) else { return count(KernelReason::RecordLost) };
    fill(entry.as_mut_ptr());
    let wake = RECORDS.query(BPF_RB_AVAIL_DATA.into()) > WAKE_ABOVE;
    entry.submit(if wake { 0 } else { BPF_RB_NO_WAKEUP.into() });
}

/// Reports an event of an established connection.
#[inline(always)]
pub fn established(
    kind: RecordKind,
    reason: KernelReason,
    accepted: &Accepted,
    from_client: u64,
    from_server: u64,
) {
    let flow = &accepted.flow;
    write(|record| {
        // SAFETY: the entry is the program's own until it is submitted; every byte is written.
        unsafe {
            (*record).kind = kind as u8;
            (*record).path = flow.path;
            (*record).flags = flow.flags;
            (*record).reserved = 0;
            (*record).reason = reason as u32;
            (*record).source = accepted.probable_source;
            (*record).destination = flow.destination;
            (*record).netns = flow.server_netns;
            (*record).server_cookie = flow.server_cookie;
            (*record).from_client = from_client;
            (*record).from_server = from_server;
            (*record).opened = flow.opened;
            (*record).at = now();
            (*record).tuple = accepted.tuple;
            (*record).original_destination = flow.original_destination;
        }
    });
}

/// A refused connection, as far as the hook knows it.
pub struct Refused {
    pub reason: KernelReason,
    pub path: Path,
    pub source: WorkloadNumber,
    pub destination: WorkloadNumber,
    pub netns: NetnsCookie,
}

/// Reports and counts a refused connection.
#[inline(always)]
pub fn refused(refused: &Refused, tuple: &Tuple, original_destination: &SocketAddress) {
    count(refused.reason);
    write(|record| {
        // SAFETY: as above.
        unsafe {
            (*record).kind = RecordKind::Refused as u8;
            (*record).path = refused.path as u8;
            (*record).flags = 0;
            (*record).reserved = 0;
            (*record).reason = refused.reason as u32;
            (*record).source = refused.source;
            (*record).destination = refused.destination;
            (*record).netns = refused.netns;
            (*record).server_cookie = 0;
            (*record).from_client = 0;
            (*record).from_server = 0;
            (*record).opened = 0;
            (*record).at = now();
            (*record).tuple = *tuple;
            (*record).original_destination = *original_destination;
        }
    });
}
