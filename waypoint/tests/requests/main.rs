//! Requests through a waypoint: real HBONE, real certificates and real ztunnels' inbound side, all on
//! loopback addresses and without root.

mod basics;
mod ca;
mod drain;
mod hostile;
mod lab;
mod protocols;
mod retries;
mod rules;
mod telemetry;
