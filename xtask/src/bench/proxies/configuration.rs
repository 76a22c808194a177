//! HAProxy and Envoy as HTTP proxies with one route to one server, one thread each, without a log; all else
//! as their makers set it, but for limits that a thousand connections would reach.
//!
//! Entry points: [`haproxy`] and [`envoy`].

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::bench::envoy;

/// HAProxy's file.
pub(super) fn haproxy(listen: SocketAddr, server: SocketAddr) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 8000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout \
         client 10m\n  timeout server 10m\nfrontend in\n  bind {listen}\n  default_backend out\n\
         backend out\n  server one {server}\n"
    )
}

/// Envoy's file.
pub(super) fn envoy(listen: SocketAddr, server: SocketAddr) -> Value {
    const NAME: u16 = 1;
    let hosts = json!([{
        "name": "all",
        "domains": ["*"],
        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": format!("out-{NAME}") } }],
    }]);
    let manager = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3\
                      .HttpConnectionManager",
            "stat_prefix": "http",
            "route_config": { "virtual_hosts": hosts },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                }
            }],
        }
    });
    let address =
        json!({ "socket_address": { "address": listen.ip().to_string(), "port_value": listen.port() } });
    json!({ "static_resources": {
        "listeners": [{ "name": "in", "address": address, "filter_chains": [{ "filters": [manager] }] }],
        "clusters": [envoy::cluster(&server.ip().to_string(), NAME, server.port())],
    } })
}
