use ambit_core::mesh::Change;

use super::*;
use ambit_proxy::testing::{endpoint_of, mesh, put, service, uid, workload};

const WEB: Option<WorkloadNumber> = Some(WorkloadNumber(1));
const CART: Option<WorkloadNumber> = Some(WorkloadNumber(2));

#[test]
fn both_parties_named_as_far_as_known() {
    let mesh = mesh([
        put(workload("web", &["10.0.0.1"])),
        Change::PutService(Arc::new(service("cart", "10.96.0.1"))),
        put(endpoint_of(workload("cart", &["10.0.1.1"]), "cart")),
        put(workload("far", &["10.7.0.1"])),
    ]);
    let names = Names::default();
    names.enrolled(WEB.unwrap(), &uid("web"));
    names.enrolled(CART.unwrap(), &uid("cart"));
    names.follow(&mesh, None);
    let socket = |text: &str| -> SocketAddr { text.parse().unwrap() };
    let observed =
        |path, source, destination, client: Option<&str>, server: &str, asked: Option<&str>| Observation {
            path,
            source,
            destination,
            client: client.map(socket),
            server: socket(server),
            asked: asked.map(socket),
        };
    let (web, far, app) = ("10.0.0.1:4000", "10.7.0.1:4000", "10.0.1.1:8080");
    let vip = Some("10.96.0.1:80");
    let rows = [
        (
            "direct, by its service",
            observed(KernelPath::Direct, WEB, CART, Some(web), app, vip),
            "outbound inbound",
            Some("web"),
            true,
            Some("cart"),
        ),
        (
            "direct, by the pod's address",
            observed(KernelPath::Direct, WEB, CART, Some(web), app, Some(app)),
            "outbound inbound",
            Some("web"),
            true,
            None,
        ),
        (
            "native, from elsewhere",
            observed(KernelPath::Native, None, CART, Some(far), app, None),
            "inbound",
            Some("far"),
            false,
            Some("cart"),
        ),
        (
            "native, from an unknown address",
            observed(KernelPath::Native, None, CART, Some("192.0.2.1:9"), app, None),
            "inbound",
            None,
            false,
            Some("cart"),
        ),
        (
            "a refused connect",
            observed(KernelPath::Tunnel, WEB, None, None, "10.96.0.1:80", vip),
            "outbound",
            Some("web"),
            false,
            Some("cart"),
        ),
    ];
    for (name, observation, directions, source, proven, service) in rows {
        let reports = observation.reports(&mesh, &names);
        let found: Vec<_> = reports.iter().map(|info| info.direction.as_str()).collect();
        assert_eq!(found.join(" "), directions, "{name}");
        for info in reports {
            assert_eq!(info.source.workload.as_ref().map(|w| &*w.name), source, "{name}");
            assert_eq!(info.source.identity.is_some(), proven, "{name}");
            assert_eq!(info.destination.identity.is_some(), proven, "{name}");
            assert_eq!(info.service.as_ref().map(|s| &*s.name), service, "{name}");
            assert!(!info.mutual_tls, "{name}");
        }
    }
    let refused = observed(KernelPath::Tunnel, WEB, None, None, "10.96.0.1:80", vip).reports(&mesh, &names);
    assert_eq!(refused[0].source.address, socket("10.0.0.1:0"), "its workload, before it had a port");
}
