//! Sizes of maps, and how much of the shared ones one pod may take.
//!
//! A pod may have as many entries of a shared map as are free. So one that takes all it can get has half, two
//! have a third each, and there is room for the next; nothing has to be configured. Some room is left out of
//! that: it is for what is under way when the shares are used up.

/// Enrolled pods of one node.
pub const PODS: u32 = 4096;
/// Port rules of all pods.
pub const PORTS: u32 = 1 << 16;
/// Open connections from processes of the node to pods.
pub const PROBES: u32 = 1 << 16;
/// Captured destinations.
pub const DESTINATIONS: u32 = 1 << 18;
/// Ports and client namespaces of destinations that are captured in part.
pub const PARTS: u32 = 1 << 17;
/// Hand-offs of all pods.
pub const HANDOFFS: u32 = 1 << 18;
/// Hand-offs that are shared out.
pub const SHARED_HANDOFFS: u64 = HANDOFFS as u64 - (1 << 14);
/// Cached verdicts.
pub const VERDICTS: u32 = 1 << 18;
/// Addresses of enrolled pods.
pub const LOCALS: u32 = 1 << 14;
/// Services whose endpoints the kernel chooses.
pub const SERVICES: u32 = 1 << 16;
/// Slots of all services' tables.
pub const ENDPOINTS: u32 = 1 << 18;
/// Clients with session affinity.
pub const STICKY: u32 = 1 << 17;
/// Tracked flows of all pods: direct ones count for their client, native ones for their server.
pub const FLOWS: u32 = 1 << 19;
/// Tracked flows that are shared out. The rest is for native connections that were let in while there was
/// room and are established later.
pub const SHARED_FLOWS: u64 = FLOWS as u64 - (1 << 16);
/// Direct connections between shared links; they count for their client.
pub const LINK_FLOWS: u32 = 1 << 20;
/// Those that are shared out.
pub const SHARED_LINK_FLOWS: u64 = LINK_FLOWS as u64 - (1 << 17);
/// Bytes of the ring buffer of records of established connections.
pub const RECORDS: u32 = 1 << 20;
/// Bytes of the ring buffer of records of refusals.
pub const REFUSAL_RECORDS: u32 = 1 << 18;
/// Records of one pod's refusals in [`REFUSAL_SPAN`]; the others are counted.
pub const POD_REFUSAL_RECORDS: u32 = 64;
/// In nanoseconds.
pub const REFUSAL_SPAN: u64 = 100_000_000;
