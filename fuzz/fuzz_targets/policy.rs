//! Any policies on one workload: the engine agrees with a slow reference, and the kernel's plaintext modes
//! never contradict the engine.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ambit_core::inbound::{PlaintextMode, plaintext_modes};
use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{Authorization, Identity, Scope, Workload};
use ambit_core::policy::{Request, authorize};
use ambit_fuzz::reference;
use ambit_xds::convert::{decode_authorization, decode_workload};
use ambit_xds::proto::istio::{security, workload};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

const OWN: [&str; 2] = ["10.1.0.1", "fd00::1"];
const SOURCES: [&str; 3] = ["10.1.0.7", "192.168.1.1", "fd00:7::7"];
const PORTS: [u16; 3] = [80, 8080, 1234];
const PEERS: [Option<&str>; 4] = [
    None,
    Some("spiffe://cluster.local/ns/shop/sa/web"),
    Some("spiffe://cluster.local/ns/blog/sa/web"),
    Some("spiffe://other.example/ns/shop/sa/api"),
];

/// Reads policies: each is two bytes of length, then the message.
fn policies(mut data: &[u8]) -> Vec<Authorization> {
    let mut policies: Vec<Authorization> = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (message, rest) = rest.split_at(length);
        data = rest;
        let decoded = security::Authorization::decode(message).ok().map(|mut message| {
            // In the workload's namespace, with a unique name.
            message.namespace = "shop".to_owned();
            message.name = format!("p{}", policies.len());
            decode_authorization(&message)
        });
        if let Some(Ok(policy)) = decoded {
            policies.push(policy);
        }
    }
    policies
}

fn cart(policies: &[Authorization]) -> Workload {
    let selecting = policies.iter().filter(|policy| policy.scope == Scope::WorkloadSelector);
    let octets = |address: &str| match ip(address) {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let message = workload::Workload {
        uid: "Kubernetes//Pod/shop/cart".to_owned(),
        name: "cart".to_owned(),
        namespace: "shop".to_owned(),
        addresses: OWN.map(octets).to_vec(),
        authorization_policies: selecting.map(|policy| policy.key.to_string()).collect(),
        ..Default::default()
    };
    decode_workload(&message).expect("a workload")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fuzz_target!(|data: &[u8]| {
    let policies = policies(data);
    let cart = cart(&policies);
    let uid = cart.uid.clone();
    let mut mesh = Mesh::new();
    mesh.apply(policies.iter().map(|policy| Change::PutPolicy(Arc::new(policy.clone()))));
    mesh.apply([Change::PutWorkload(Arc::new(cart))]);
    let modes = plaintext_modes(&mesh, &uid);
    for own in OWN {
        for port in PORTS {
            let destination = SocketAddr::new(ip(own), port);
            for source in SOURCES.map(ip) {
                for name in PEERS {
                    let identity: Option<Identity> = name.map(|name| name.parse().expect("an identity"));
                    let peer = Request { identity: identity.as_ref(), source, destination };
                    let allowed = authorize(&mesh, &uid, &peer).outcome.is_ok();
                    let expected = reference::allows(&policies, identity.as_ref(), source, destination);
                    assert_eq!(allowed, expected, "{name:?} from {source} to {destination}: {policies:#?}");
                    if identity.is_none() && source.is_ipv4() == destination.is_ipv4() {
                        match modes.ports.get(&port).unwrap_or(&modes.default) {
                            PlaintextMode::Open => {
                                assert!(allowed, "OPEN, but {source} to {destination} is refused")
                            }
                            PlaintextMode::Strict => {
                                assert!(!allowed, "STRICT, but {source} to {destination} is allowed")
                            }
                            PlaintextMode::Check => {}
                        }
                    }
                }
            }
        }
    }
});
