//! What the core decides, asked from outside through its public interface: tables of named rows, replays of
//! events, and properties.

#![expect(
    clippy::type_complexity,
    reason = "the rows of tables are tuples; names for them would say nothing more"
)]

mod balance;
mod build;
mod connection_routes;
mod derive;
mod derive_authorization;
mod derive_endpoint_slice;
mod derive_peer_authentication;
mod derive_properties;
mod derive_routes;
mod derive_service_entry;
mod derive_waypoint;
mod derive_waypoint_properties;
mod direct;
mod enrolment;
mod exclusion;
mod fronted;
mod inbound;
mod mesh;
mod model;
mod objects;
mod outbound;
mod outlier;
mod ownership;
mod policy;
mod policy_properties;
mod protocol;
mod route;
mod route_properties;
mod service_routes;
mod services;
mod unlisted;
mod waypoint;
