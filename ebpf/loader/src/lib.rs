//! The kernel side of the data plane, as ztunnel uses it: eBPF programs, links and maps.
//!
//! Entry points: [`Dataplane::open`] attaches an instance to this kernel, or takes over the state of an
//! earlier daemon; [`detach`] removes the instance. Pins are under `<bpffs>/<instance>/v<version>/`: maps by
//! their names, links as `<program>-<hash of the object>` and `inbound-<netns cookie>-<hash>`. They outlive
//! the daemon, so that an enrolled pod is never without its programs.

#![warn(missing_docs)]

mod bpf;
mod clock;
mod dataplane;
mod destinations;
mod detach;
mod difference;
mod direct;
mod enrolled;
mod error;
mod flow;
mod held;
mod kept;
mod links;
mod log;
mod map;
mod memory;
mod object;
mod older;
mod pins;
mod pods;
mod ring;
mod settings;
mod shared;
mod socket;
mod table;
mod upkeep;
mod waiter;

pub use ambit_abi::{
    HBONE_PORT, InboundMode, KernelReason, Lease, LinkKind, NetnsCookie, Path, RecordKind, WorkloadNumber,
};

pub use dataplane::{Captured, Dataplane, Fill};
pub use destinations::{Capture, Part};
pub use detach::detach;
pub use difference::Difference;
pub use direct::{Verdict, VerdictSweep};
pub use error::Error;
pub use flow::{Flow, Record};
pub use links::PodLink;
pub use pods::{Inbound, Listeners};
pub use settings::{InstanceName, InstanceNameError, Settings};
pub use socket::netns_cookie;
pub use table::Table;
pub use upkeep::{Look, Served};
pub use waiter::Waiter;
