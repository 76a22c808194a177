//! Requests through a waypoint: real HBONE, real certificates and real ztunnels' inbound side, all on
//! loopback addresses and without root.

mod basics;
mod ca;
mod connections;
mod downgrade;
mod drain;
mod edges;
mod frames;
mod grpc;
mod h2spec;
mod hostile;
mod lab;
mod protocols;
mod retries;
mod rules;
mod smuggling;
mod telemetry;
