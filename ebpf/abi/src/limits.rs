//! Sizes of maps.

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
/// Hand-offs of one pod. A flood in one pod leaves the other pods their own share.
pub const POD_HANDOFFS: u64 = 1 << 12;
/// Hand-offs of all pods.
pub const HANDOFFS: u32 = 1 << 18;
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
/// Tracked flows of one pod: direct ones as their client, native ones as their server.
pub const POD_FLOWS: u64 = 1 << 15;
/// Tracked flows of all pods.
pub const FLOWS: u32 = 1 << 19;
/// Direct connections between shared links of one pod, as their client.
pub const POD_LINK_FLOWS: u64 = 1 << 16;
/// Direct connections between shared links.
pub const LINK_FLOWS: u32 = 1 << 20;
/// Bytes of the ring buffer of records.
pub const RECORDS: u32 = 1 << 20;
