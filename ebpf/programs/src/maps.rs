//! The maps. Plain hashes that allocate as they fill: an LRU would let one pod's flood evict another's entries.

use ambit_abi::{
    Address, FlowKey, Handoff, ListenerKey, NetnsCookie, Pod, PodName, PortKey, PortRule, Reason, Socket,
    limits,
};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{HashMap, PerCpuArray, SockHash};

const ON_DEMAND: u32 = BPF_F_NO_PREALLOC;

#[map]
pub static PODS: HashMap<NetnsCookie, Pod> = HashMap::with_max_entries(limits::PODS, ON_DEMAND);

#[map]
pub static POD_NAMES: HashMap<NetnsCookie, PodName> = HashMap::with_max_entries(limits::PODS, ON_DEMAND);

#[map]
pub static POD_HANDOFFS: HashMap<NetnsCookie, u64> = HashMap::with_max_entries(limits::PODS, ON_DEMAND);

#[map]
pub static PORTS: HashMap<PortKey, PortRule> = HashMap::with_max_entries(limits::PORTS, ON_DEMAND);

#[map]
pub static NODE_ADDRESSES: HashMap<Address, u8> =
    HashMap::with_max_entries(limits::NODE_ADDRESSES, ON_DEMAND);

#[map]
pub static DESTINATIONS: HashMap<Address, u8> = HashMap::with_max_entries(limits::DESTINATIONS, ON_DEMAND);

#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(limits::PODS * 4, 0);

#[map]
pub static HANDOFFS: HashMap<FlowKey, Handoff> = HashMap::with_max_entries(limits::HANDOFFS, ON_DEMAND);

#[map]
static REFUSALS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNTERS, 0);

#[btf_map]
pub static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// Counts one refusal.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = REFUSALS.get_ptr_mut(reason as u32) {
        // SAFETY: the slot is this CPU's own, and programs are not interrupted by programs of the same kind;
        // one increment lost between two kinds would be a counter that is off by one.
        unsafe { *counter += 1 };
    }
}
