//! Any endpoints, load balancing settings and random numbers: a picked endpoint is eligible by a slow
//! reference, and over all random numbers each endpoint gets the share of its capacity.
#![no_main]

use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::balance::{Avoid, Choice};
use ambit_core::mesh::{Change, Mesh};
use ambit_core::model::{Health, LoadBalancing, LoadBalancingMode, LocalityScope, Service, Workload};
use ambit_xds::convert::{decode_service, decode_workload};
use ambit_xds::proto::istio::workload as wire;
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

const KEY: &str = "shop/cart.shop.svc.cluster.local";

#[derive(Arbitrary, Debug)]
struct Site {
    capacity: u8,
    unhealthy: bool,
    region: bool,
    zone: bool,
    node: bool,
}

#[derive(Arbitrary, Debug)]
struct Case {
    client: Site,
    endpoints: Vec<Site>,
    preference: Vec<u8>,
    mode: u8,
    allow_unhealthy: bool,
}

fn workload(number: u8, site: &Site) -> Workload {
    let text = |other: bool| if other { "b" } else { "a" }.to_owned();
    let message = wire::Workload {
        uid: format!("w{number:02}"),
        name: format!("w{number:02}"),
        namespace: "shop".to_owned(),
        addresses: vec![vec![10, 0, 0, number]],
        node: text(site.node),
        locality: Some(wire::Locality {
            region: text(site.region),
            zone: text(site.zone),
            subzone: String::new(),
        }),
        status: i32::from(site.unhealthy),
        capacity: Some(u32::from(site.capacity % 8)),
        services: [(KEY.to_owned(), wire::PortList { ports: vec![port()] })].into(),
        ..Default::default()
    };
    decode_workload(&message).expect("a workload")
}

fn port() -> wire::Port {
    wire::Port { service_port: 80, target_port: 8080, ..Default::default() }
}

fn service(case: &Case) -> Service {
    let message = wire::Service {
        name: "cart".to_owned(),
        namespace: "shop".to_owned(),
        hostname: "cart.shop.svc.cluster.local".to_owned(),
        addresses: vec![wire::NetworkAddress { address: vec![10, 96, 0, 1], ..Default::default() }],
        ports: vec![port()],
        load_balancing: Some(wire::LoadBalancing {
            routing_preference: case
                .preference
                .iter()
                .take(6)
                .map(|scope| i32::from(scope % 6) + 1)
                .collect(),
            mode: i32::from(case.mode % 4),
            health_policy: i32::from(case.allow_unhealthy),
        }),
        ..Default::default()
    };
    decode_service(&message).expect("a service")
}

fn shared(rule: &LoadBalancing, client: &Workload, endpoint: &Workload) -> usize {
    let mut shared = 0;
    for scope in &rule.routing_preference {
        let same = match scope {
            LocalityScope::Region => client.locality.region == endpoint.locality.region,
            LocalityScope::Zone => client.locality.zone == endpoint.locality.zone,
            LocalityScope::Subzone => client.locality.subzone == endpoint.locality.subzone,
            LocalityScope::Node => client.node == endpoint.node,
            LocalityScope::Cluster => client.cluster == endpoint.cluster,
            LocalityScope::Network => client.network == endpoint.network,
        };
        if !same {
            return shared;
        }
        shared += 1;
    }
    shared
}

/// Indices of the endpoints that may be picked.
fn eligible(rule: &LoadBalancing, client: &Workload, endpoints: &[Arc<Workload>]) -> Vec<usize> {
    let usable = |index: &usize| {
        let endpoint = &endpoints[*index];
        endpoint.capacity > 0 && (endpoint.health == Health::Healthy || rule.allow_unhealthy)
    };
    let usable: Vec<usize> = (0..endpoints.len()).filter(usable).collect();
    let at_least = match rule.mode {
        LoadBalancingMode::Unspecified | LoadBalancingMode::Passthrough => return usable,
        LoadBalancingMode::Strict => rule.routing_preference.len(),
        LoadBalancingMode::Failover => {
            usable.iter().map(|index| shared(rule, client, &endpoints[*index])).max().unwrap_or(0)
        }
    };
    usable.into_iter().filter(|index| shared(rule, client, &endpoints[*index]) >= at_least).collect()
}

fuzz_target!(|case: Case| {
    let client = workload(200, &case.client);
    let service = service(&case);
    let sites = case.endpoints.iter().take(12).zip(1..);
    let endpoints: Vec<_> = sites.map(|(site, number)| Arc::new(workload(number, site))).collect();
    let mut mesh = Mesh::new();
    mesh.apply([Change::PutService(Arc::new(service.clone()))]);
    mesh.apply(endpoints.iter().map(|endpoint| Change::PutWorkload(endpoint.clone())));
    let asked: SocketAddr = "10.96.0.1:80".parse().expect("an address");
    let choice = Choice { mesh: &mesh, client: &client, service: &service, asked, avoid: Avoid::NONE };
    let eligible = eligible(&service.load_balancing, &client, &endpoints);
    let total: u32 = eligible.iter().map(|index| endpoints[*index].capacity).sum();
    let mut shares = vec![0; endpoints.len()];
    // One random number in the middle of each unit of capacity.
    for unit in 0..u128::from(total.max(1)) {
        let dice = ((2 * unit + 1) << 64) / u128::from(2 * total.max(1));
        match choice.pick(u64::try_from(dice).expect("below 2^64")) {
            Some(picked) => {
                let index =
                    endpoints.iter().position(|it| it.uid == picked.workload.uid).expect("a given endpoint");
                assert!(eligible.contains(&index), "{index} was picked: {case:?}");
                assert_eq!(picked.address, SocketAddr::new(endpoints[index].addresses[0], 8080));
                shares[index] += 1;
            }
            None => assert!(total == 0, "no endpoint was picked: {case:?}"),
        }
    }
    for index in eligible {
        assert_eq!(shares[index], endpoints[index].capacity, "the share of {index}: {case:?}");
    }
});
