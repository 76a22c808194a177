//! Labs: a cluster on one machine, for the suites and the demo.
//!
//! Nodes and pods are network namespaces with the layout a CNI plugin would give them; the daemons and the
//! clients are the real programs, run as processes. [`Lab::builder`] is the entry point:
//!
//! ```no_run
//! use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, ServiceSpec};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::builder()
//!     .namespace(NamespaceSpec::mesh("shop"))
//!     .pod(PodSpec::new("shop/web"))
//!     .pod(PodSpec::new("shop/cart").node(1))
//!     .service(ServiceSpec::new("shop/cart").port(80, 8080))
//!     .start()?;
//! let _server = lab.pod("shop/cart").serve("shop", &["cart", "--listen", "[::]:8080"])?;
//! let url = format!("http://{}/", lab.service("shop/cart", Family::V4));
//! println!("{}", lab.pod("shop/web").output("curl", &["--silent", &url])?);
//! lab.finish()
//! # }
//! ```

mod builder;
mod capture;
pub mod chart;
mod daemon;
mod enrol;
pub mod http;
mod janitor;
mod lab;
mod leaks;
mod maps;
mod metrics;
mod netns;
pub mod network;
mod node;
mod pod;
mod report;
mod spec;
mod sys;
mod wait;
mod waypoint;

pub use builder::{Builder, binaries};
pub use capture::{Capture, Packet, Protocol, Trace};
pub use daemon::Daemon;
pub use enrol::Enrolment;
pub use janitor::sweep;
pub use lab::Lab;
pub use leaks::{Objects, files};
pub use metrics::{Metrics, Sample};
pub use netns::Netns;
pub use network::Layout;
pub use node::Node;
pub use pod::{Family, Place, Pod, Process};
pub use spec::{MODE_LABEL, NamespaceSpec, PodSpec, ServiceSpec};
pub use wait::{DEADLINE, eventually, within};
pub use waypoint::Waypoint;
