//! The programs on a real kernel, with real sockets in real network namespaces. Needs root.

mod choice;
mod closing;
mod coexistence;
mod cost;
mod destinations;
mod direct;
mod exclusions;
mod flood;
mod foreign;
mod inbound;
mod lab;
mod leaks;
mod lifecycle;
mod limits;
mod log;
mod neighbours;
mod outbound;
mod shared_links;
mod system;
mod unusual;
mod upkeep;
