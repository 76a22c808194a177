//! The programs on a real kernel, with real sockets in real network namespaces. Needs root.

mod inbound;
mod lab;
mod leaks;
mod lifecycle;
mod outbound;
mod unusual;
