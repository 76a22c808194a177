//! The kernel side of the data plane, as ztunnel uses it: programs, links and maps, and nothing else of eBPF.
//!
//! Ways in: [`Dataplane::open`] attaches what an instance has on this kernel or takes over what an earlier
//! daemon left; [`detach`] removes all of it. Pins lie under `<bpffs>/<instance>/v<version>/`: maps by their
//! names, links as `<program>-<hash of the object>` and `inbound-<namespace cookie>-<hash>`. They outlive
//! the daemon, so that an enrolled pod is never without its programs.

mod bpf;
mod clock;
mod dataplane;
mod detach;
mod direct;
mod error;
mod flow;
mod map;
mod memory;
mod object;
mod pins;
mod pods;
mod ring;
mod settings;
mod socket;
mod table;

pub use ambit_abi::{HBONE_PORT, InboundMode, KernelReason, NetnsCookie, Path, RecordKind, WorkloadNumber};

pub use dataplane::{Captured, Dataplane};
pub use detach::detach;
pub use direct::Verdict;
pub use error::Error;
pub use flow::{Flow, Record};
pub use pods::{Inbound, Listeners};
pub use settings::{InstanceName, InstanceNameError, Settings};
pub use socket::netns_cookie;
pub use table::Table;
