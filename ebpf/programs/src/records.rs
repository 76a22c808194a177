//! Records for the daemon, in two ring buffers: of established connections, and of refused ones, so that a
//! flood of these displaces nothing. The daemon reads them periodically, and is woken when one of them fills
//! up or a record must be acted upon.

use ambit_abi::{
    Accepted, Address, KernelReason, NetnsCookie, Path, RecordEntry, RecordKind, SocketAddress, Tuple,
    WorkloadNumber, limits,
};
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::maps::RingBuf;

use crate::atomic;
use crate::clock::now;
use crate::maps::{LOCALS, POD_REFUSALS, RECORDS, REFUSAL_RECORDS, count};

/// The workload that probably has the address: for records, never for decisions.
#[inline(always)]
pub fn probable_workload(address: Address) -> WorkloadNumber {
    LOCALS.get_ptr(address).map_or(WorkloadNumber::NONE, |number| {
        // SAFETY: the kernel keeps the entry until the program ends.
        unsafe { number.read_volatile() }
    })
}

/// Writes a record in place: a program's stack is small. The daemon is woken where it is `urgent`, and where
/// a quarter of the ring's `size` is in use. False: the ring has no room.
#[inline(always)]
fn write(ring: &RingBuf, size: u32, urgent: bool, fill: impl FnOnce(*mut RecordEntry)) -> bool {
    let Some(mut entry) = ring.reserve::<RecordEntry>(0) else { return false };
    fill(entry.as_mut_ptr());
    let wake = urgent || ring.query(BPF_RB_AVAIL_DATA.into()) > u64::from(size / 4);
    entry.submit(if wake { BPF_RB_FORCE_WAKEUP.into() } else { BPF_RB_NO_WAKEUP.into() });
    true
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
    let urgent = matches!(kind, RecordKind::Stale | RecordKind::Untracked);
    let written = write(&RECORDS, limits::RECORDS, urgent, |record| {
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
    if !written {
        count(KernelReason::RecordLost);
    }
}

/// A refused connection, as far as the hook knows it.
pub struct Refused {
    pub reason: KernelReason,
    pub path: Path,
    pub source: WorkloadNumber,
    pub destination: WorkloadNumber,
    pub netns: NetnsCookie,
}

/// Takes a record out of a pod's budget, and returns how many connections were refused there until now. None:
/// the budget is used up; the next record tells how many there were in between.
///
/// Programs on several CPUs may begin a span at the same time: then there are a few records more.
#[inline(always)]
fn take_from_budget(netns: NetnsCookie) -> Option<u64> {
    let budget = POD_REFUSALS.get_ptr_mut(netns)?;
    let now = now();
    // SAFETY: a value of a map, which the kernel keeps until the program ends.
    unsafe {
        atomic::add(&raw mut (*budget).refused, 1);
        if now.wrapping_sub((&raw const (*budget).since).read_volatile()) >= limits::REFUSAL_SPAN {
            (&raw mut (*budget).since).write_volatile(now);
            (&raw mut (*budget).records).write_volatile(0);
        }
        if (&raw const (*budget).records).read_volatile() >= u64::from(limits::POD_REFUSAL_RECORDS) {
            return None;
        }
        atomic::add(&raw mut (*budget).records, 1);
        Some((&raw const (*budget).refused).read_volatile())
    }
}

/// Counts a refused connection, and reports it within its pod's budget.
#[inline(always)]
pub fn refused(refused: &Refused, tuple: &Tuple, original_destination: &SocketAddress) {
    count(refused.reason);
    let Some(until_now) = take_from_budget(refused.netns) else { return };
    // Where there is no room, the next record tells how many there were.
    let _written = write(&REFUSAL_RECORDS, limits::REFUSAL_RECORDS, false, |record| {
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
            (*record).from_client = until_now;
            (*record).from_server = 0;
            (*record).opened = 0;
            (*record).at = now();
            (*record).tuple = *tuple;
            (*record).original_destination = *original_destination;
        }
    });
}
