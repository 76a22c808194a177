//! What a request says survives the wire, and what is no request is none.

use proptest::option;
use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[^\\p{Cc}]{0,30}").expect("an expression")
}

prop_compose! {
    fn baggage()(
        texts in (text(), text(), text(), text(), text(), text(), text()),
        kind in prop::sample::select(vec!["deployment", "cronjob", "pod", "job"]),
    ) -> Baggage {
        let (cluster, namespace, workload, service, version, region, zone) = texts;
        let workload_kind = if workload.is_empty() { "" } else { kind }.to_owned();
        Baggage { cluster, namespace, workload_kind, workload, service, version, region, zone }
    }
}

fn authority() -> impl Strategy<Value = Authority> {
    prop_oneof![
        (any::<std::net::IpAddr>(), 1..=u16::MAX)
            .prop_map(|(address, port)| Authority::Address(SocketAddr::new(address, port))),
        ("[a-z][a-z0-9-]{0,10}(\\.[a-z][a-z0-9-]{0,10}){0,3}", 1..=u16::MAX)
            .prop_map(|(name, port)| Authority::Host { name: name.into(), port }),
    ]
}

proptest! {
    #[test]
    fn what_is_asked_arrives(
        authority in authority(),
        baggage in option::of(baggage()),
        forwarded in option::of(any::<SocketAddr>()),
    ) {
        // A flow label or scope is no part of the text.
        let forwarded = forwarded.map(|address| SocketAddr::new(address.ip(), address.port()));
        let traceparent = Some(HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        let baggage = baggage.filter(|baggage| *baggage != Baggage::default());
        let request = ConnectRequest { authority, baggage, forwarded, traceparent };
        let read = ConnectRequest::from_http(&request.to_http().expect("a request"));
        prop_assert_eq!(read, Ok(request));
    }

    #[test]
    fn any_text_is_an_authority_or_none(text in any::<String>()) {
        if let Ok(authority) = text.parse::<Authority>() {
            prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
        }
    }

    #[test]
    fn any_header_is_read(value in proptest::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            let mut request = ConnectRequest::to("10.0.0.1:80".parse().expect("an address")).to_http().expect("a request");
            request.headers_mut().insert(BAGGAGE, value.clone());
            prop_assert!(ConnectRequest::from_http(&request).is_ok(), "telemetry refuses nobody");
            request.headers_mut().insert(FORWARDED, value);
            // Whatever it is, it is no crash.
            let _read = ConnectRequest::from_http(&request);
        }
    }
}

#[test]
fn authorities() {
    for (text, good) in [
        ("10.0.0.1:80", true),
        ("[fd00::1]:80", true),
        ("[::ffff:10.0.0.1]:80", true),
        ("cart.shop.svc.cluster.local:8080", true),
        ("cart:65535", true),
        ("10.0.0.1", false),
        ("10.0.0.1:", false),
        ("10.0.0.1:0", false),
        ("10.0.0.1:65536", false),
        ("10.0.0.1:+80", false),
        ("10.0.0.1:080x", false),
        ("10.0.0:80", false),
        ("0x0a000001:80", true),
        ("fd00::1:80", false),
        (":80", false),
        ("", false),
        ("user@cart:80", false),
        ("cart/x:80", false),
        ("cart :80", false),
    ] {
        assert_eq!(text.parse::<Authority>().is_ok(), good, "{text}");
    }
}

#[test]
fn forwarded_elements() {
    let good = "10.0.0.1:4711".parse::<SocketAddr>().expect("an address");
    for (text, expected) in [
        ("for=\"10.0.0.1:4711\"", Some(good)),
        ("For=\"10.0.0.1:4711\"", Some(good)),
        ("for=10.0.0.1:4711", Some(good)),
        ("for=\"10.0.0.1:4711\";proto=http", Some(good)),
        ("by=\"10.0.0.9:1\"; for=\"10.0.0.1:4711\"", Some(good)),
        ("for=\"[fd00::1]:4711\"", "[fd00::1]:4711".parse().ok()),
        ("for=\"10.0.0.1\"", None),
        ("for=\"10.0.0.1:4711", None),
        ("for=_hidden", None),
        ("for=\"10.0.0.1:4711\", for=\"10.0.0.2:1\"", None),
        ("", None),
    ] {
        let value = HeaderValue::from_str(text).expect("a value");
        assert_eq!(parse_forwarded(&value).ok(), expected, "{text}");
    }
}

#[test]
fn baggage_as_others_write_it() {
    let value = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop, k8s.deployment.name=web;x=y,service.name=we%20b,\
                 k8s.node.name=n1,cloud.region=,service.version=v1,service.version=v2,broken,zone=%zz,a=b=c";
    let read = Baggage::from_header(&HeaderValue::from_static(value)).expect("baggage");
    let expected = Baggage {
        cluster: "Kubernetes".to_owned(),
        namespace: "shop".to_owned(),
        workload_kind: "deployment".to_owned(),
        workload: "web".to_owned(),
        service: "we b".to_owned(),
        version: "v1".to_owned(),
        ..Baggage::default()
    };
    assert_eq!(read, expected);
}

#[test]
fn baggage_that_would_break_a_log_is_left_out() {
    let value = HeaderValue::from_static("k8s.namespace.name=shop,service.name=a%0Ab,service.version=%FF");
    let read = Baggage::from_header(&value).expect("baggage");
    assert_eq!(read, Baggage { namespace: "shop".to_owned(), ..Baggage::default() });
}
