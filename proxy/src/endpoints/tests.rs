use super::*;
use crate::testing::{endpoint_of, mesh, put, uid, workload};
use ambit_core::testing::service_key;

fn endpoint(name: &str) -> Endpoint {
    Endpoint { port: ServicePortKey { service: service_key("shop/cart"), port: 80 }, workload: uid(name) }
}

fn carts() -> Mesh {
    mesh([
        put(endpoint_of(workload("cart-1", &["10.0.1.1"]), "cart")),
        put(endpoint_of(workload("cart-2", &["10.0.1.2"]), "cart")),
    ])
}

#[test]
fn endpoint_ejected_after_failures_and_returned_by_success() {
    let (endpoints, mesh, one) = (Endpoints::new(Some(Settings::default())), carts(), endpoint("cart-1"));
    let mut changes = endpoints.changes();
    let is_out = || endpoints.ejected().contains(&one.port.service, 80, &one.workload);
    for _ in 0..2 {
        endpoints.failed(&mesh, &one);
    }
    assert!(!is_out() && !changes.has_changed().unwrap());
    endpoints.failed(&mesh, &one);
    assert!(is_out() && changes.has_changed().unwrap());
    assert_eq!(endpoints.view()[0]["endpoint"], one.workload.to_string());
    changes.mark_unchanged();
    endpoints.succeeded(&one);
    assert!(!is_out() && changes.has_changed().unwrap());
    assert_eq!(endpoints.view(), json!([]));
}

#[test]
fn ejection_ends_at_its_deadline() {
    let short = Settings {
        first_ejection: Duration::ZERO,
        longest_ejection: Duration::ZERO,
        consecutive_failures: 1,
        ..Settings::default()
    };
    let (endpoints, mesh, one) = (Endpoints::new(Some(short)), carts(), endpoint("cart-1"));
    endpoints.failed(&mesh, &one);
    assert!(endpoints.ejected().affects(&one.port.service));
    endpoints.advance();
    assert!(!endpoints.ejected().affects(&one.port.service));
}

#[test]
fn nothing_ejected_when_switched_off() {
    let (endpoints, mesh, one) = (Endpoints::new(None), carts(), endpoint("cart-1"));
    for _ in 0..10 {
        endpoints.failed(&mesh, &one);
    }
    assert_eq!(*endpoints.ejected(), Ejected::NONE);
}
