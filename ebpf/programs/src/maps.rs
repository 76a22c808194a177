//! The maps. They are plain hashes that allocate on demand: with an LRU a flood in one pod would evict
//! entries of other pods.

use ambit_abi::{
    Accepted, Address, AffinityKey, Daemon, Destination, FlowEntry, Handoff, HandoffKey, KernelReason, Lease,
    LinkEntry, LinkFlow, ListenerKey, ListenerSlot, NetnsCookie, PartKey, Pod, PodName, PortKey, PortRule,
    RefusalBudget, Service, Slot, SlotKey, Socket, SocketAddress, Tuple, VerdictEntry, VerdictKey,
    WorkloadNumber, limits,
};
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, bpf_map_type, bpf_sk_lookup};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};

use crate::atomic;

const ON_DEMAND: u32 = BPF_F_NO_PREALLOC;

#[map]
pub static PODS: HashMap<NetnsCookie, Pod> = HashMap::with_max_entries(limits::PODS, ON_DEMAND);

#[map]
pub static POD_NAMES: HashMap<NetnsCookie, PodName> = HashMap::with_max_entries(limits::PODS, ON_DEMAND);

#[map]
pub static POD_HANDOFFS: HashMap<NetnsCookie, u64> = HashMap::with_max_entries(limits::PODS + 1, ON_DEMAND);

#[map]
pub static PORTS: HashMap<PortKey, PortRule> = HashMap::with_max_entries(limits::PORTS, ON_DEMAND);

#[map]
pub static DAEMON: Array<Daemon> = Array::with_max_entries(1, 0);

#[map]
pub static HOST: Array<NetnsCookie> = Array::with_max_entries(1, 0);

#[map]
pub static PROBES: HashMap<Tuple, u64> = HashMap::with_max_entries(limits::PROBES, ON_DEMAND);

#[map]
pub static DESTINATIONS: HashMap<Address, Destination> =
    HashMap::with_max_entries(limits::DESTINATIONS, ON_DEMAND);

#[map]
pub static PARTS: HashMap<PartKey, u8> = HashMap::with_max_entries(limits::PARTS, ON_DEMAND);

#[map]
pub static DESTINATIONS_INCOMPLETE: Array<u32> = Array::with_max_entries(1, 0);

#[btf_map]
pub static LISTENERS: Listeners = Listeners::new();

#[map]
pub static HANDOFFS: HashMap<HandoffKey, Handoff> = HashMap::with_max_entries(limits::HANDOFFS, ON_DEMAND);

#[map]
static REFUSALS: PerCpuArray<u64> = PerCpuArray::with_max_entries(KernelReason::COUNTERS, 0);

#[map]
pub static GENERATIONS: HashMap<WorkloadNumber, u64> = HashMap::with_max_entries(limits::PODS, ON_DEMAND);

#[map]
pub static VERDICTS: HashMap<VerdictKey, VerdictEntry> =
    HashMap::with_max_entries(limits::VERDICTS, ON_DEMAND);

#[map]
pub static LEASE: Array<u64> = Array::with_max_entries(Lease::SLOTS, 0);

#[map]
pub static LOCALS: HashMap<Address, WorkloadNumber> = HashMap::with_max_entries(limits::LOCALS, ON_DEMAND);

#[map]
pub static SERVICES: HashMap<SocketAddress, Service> = HashMap::with_max_entries(limits::SERVICES, ON_DEMAND);

#[map]
pub static ENDPOINTS: HashMap<SlotKey, Slot> = HashMap::with_max_entries(limits::ENDPOINTS, ON_DEMAND);

#[map]
pub static STICKY: HashMap<AffinityKey, SocketAddress> = HashMap::with_max_entries(limits::STICKY, ON_DEMAND);

#[map]
pub static FLOWS: HashMap<Tuple, FlowEntry> = HashMap::with_max_entries(limits::FLOWS, ON_DEMAND);

#[map]
pub static POD_FLOWS: HashMap<NetnsCookie, u64> = HashMap::with_max_entries(limits::PODS + 1, ON_DEMAND);

#[map]
pub static LINKS: HashMap<WorkloadNumber, LinkEntry> = HashMap::with_max_entries(limits::PODS, ON_DEMAND);

#[map]
pub static LINK_FLOWS: HashMap<Tuple, LinkFlow> = HashMap::with_max_entries(limits::LINK_FLOWS, ON_DEMAND);

#[map]
pub static POD_LINK_FLOWS: HashMap<NetnsCookie, u64> = HashMap::with_max_entries(limits::PODS + 1, ON_DEMAND);

#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(limits::RECORDS, 0);

#[map]
pub static REFUSAL_RECORDS: RingBuf = RingBuf::with_byte_size(limits::REFUSAL_RECORDS, 0);

#[map]
pub static POD_REFUSALS: HashMap<NetnsCookie, RefusalBudget> =
    HashMap::with_max_entries(limits::PODS, ON_DEMAND);

#[btf_map]
pub static SOCKETS: SkStorage<Socket> = SkStorage::new();

#[btf_map]
pub static ACCEPTED: SkStorage<Accepted> = SkStorage::new();

#[btf_map]
pub static OWN: InheritedStorage = InheritedStorage::new();

const LISTENERS_SIZE: usize = limits::PODS as usize * ListenerSlot::ALL.len();

/// A hash of sockets with values of eight bytes: only from such a one can a daemon read which socket an entry
/// is. `aya-ebpf` has values of four.
#[repr(C)]
pub struct Listeners {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SOCKHASH as usize],
    key: *const ListenerKey,
    value: *const u64,
    max_entries: *const [i32; LISTENERS_SIZE],
}

// SAFETY: a definition for the loader; the programs never read it.
unsafe impl Sync for Listeners {}

impl Listeners {
    const fn new() -> Self {
        use core::ptr::null;
        Self { r#type: null(), key: null(), value: null(), max_entries: null() }
    }

    /// Gives the connection to the socket of an entry.
    #[inline(always)]
    pub fn assign(&self, lookup: *mut bpf_sk_lookup, key: &ListenerKey, flags: u64) -> Result<(), ()> {
        let map = (&raw const *self).cast_mut().cast();
        // SAFETY: the helpers take this map, a key of its size and this hook's context; the socket is
        // released once.
        unsafe {
            let socket = bpf_map_lookup_elem(map, (&raw const *key).cast());
            if socket.is_null() {
                return Err(());
            }
            let assigned = bpf_sk_assign(lookup.cast(), socket, flags);
            bpf_sk_release(socket);
            if assigned == 0 { Ok(()) } else { Err(()) }
        }
    }
}

/// Socket storage that accepted sockets inherit from their listener. `aya-ebpf` has no such definition.
#[repr(C)]
pub struct InheritedStorage {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const u8,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: a definition for the loader; the programs never read it.
unsafe impl Sync for InheritedStorage {}

impl InheritedStorage {
    const fn new() -> Self {
        use core::ptr::null;
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }
}

/// Counts one refusal. The slot is this CPU's own, but a program of a softirq may interrupt one of a system
/// call between load and store, so the addition is atomic.
#[inline(always)]
pub fn count(reason: KernelReason) {
    if let Some(counter) = REFUSALS.get_ptr_mut(reason as u32) {
        // SAFETY: a value of a map, which the kernel keeps until the program ends.
        unsafe { atomic::add(counter, 1) };
    }
}
