//! Records for the daemon, in a ring buffer. Nobody is woken for one: the daemon comes by often enough,
//! unless the buffer fills faster.

use ambit_abi::{
    Accepted, Address, KernelReason, NetnsCookie, Path, Place, Record, RecordKind, Tuple, WorkloadNumber,
    limits,
};
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;

use crate::maps::{LOCALS, RECORDS, count};

/// More than this in the buffer, and the daemon is woken.
const PLENTY: u64 = limits::RECORDS as u64 / 4;

/// The kernel's clock, in nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// Whose address it probably is: for names in records, never for decisions.
#[inline(always)]
pub fn probably(address: Address) -> WorkloadNumber {
    LOCALS.get_ptr(address).map_or(WorkloadNumber::NONE, |number| {
        // SAFETY: the kernel keeps the entry until the program ends.
        unsafe { number.read_volatile() }
    })
}

/// Writes a record, field by field into the buffer itself: the programs' stack is small.
#[inline(always)]
fn write(fill: impl FnOnce(*mut Record)) {
    let Some(mut entry) = RECORDS.reserve::<Record>(0) else { return count(KernelReason::RecordLost) };
    fill(entry.as_mut_ptr());
    let wake = RECORDS.query(BPF_RB_AVAIL_DATA.into()) > PLENTY;
    entry.submit(if wake { 0 } else { BPF_RB_NO_WAKEUP.into() });
}

/// Something happened to an established connection.
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
            (*record).source = accepted.probable;
            (*record).destination = flow.destination;
            (*record).netns = flow.server_netns;
            (*record).server_cookie = flow.server_cookie;
            (*record).from_client = from_client;
            (*record).from_server = from_server;
            (*record).opened = flow.opened;
            (*record).at = now();
            (*record).tuple = accepted.tuple;
            (*record).asked = flow.asked;
        }
    });
}

/// Who was refused, as far as the hook knows.
pub struct Refused {
    pub reason: KernelReason,
    pub path: Path,
    pub source: WorkloadNumber,
    pub destination: WorkloadNumber,
    pub netns: NetnsCookie,
}

/// A connection was refused, before there was one.
#[inline(always)]
pub fn refused(refused: &Refused, tuple: &Tuple, asked: &Place) {
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
            (*record).asked = *asked;
        }
    });
}
