//! Requests survive the wire; what is not a request is refused.

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
    fn request_round_trips(
        authority in authority(),
        baggage in option::of(baggage()),
        forwarded in option::of(any::<SocketAddr>()),
        client in option::of("[a-z][a-z0-9-]{0,9}"),
    ) {
        let identity = |account| format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let client = client.map(|account| identity(account).parse().expect("an identity"));
        // A flow label or scope is no part of the text.
        let forwarded = forwarded.map(|address| SocketAddr::new(address.ip(), address.port()));
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let traceparent = Some(HeaderValue::from_static(traceparent));
        let baggage = baggage.filter(|baggage| *baggage != Baggage::default());
        let request = ConnectRequest { authority, baggage, forwarded, client, traceparent };
        let read = ConnectRequest::from_http(&request.to_http().expect("a request"));
        prop_assert_eq!(read, Ok(request));
    }

    #[test]
    fn authority_parser_never_panics(text in any::<String>()) {
        if let Ok(authority) = text.parse::<Authority>() {
            prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
        }
    }

    #[test]
    fn malformed_headers_do_not_refuse_request(value in proptest::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            let address = "10.0.0.1:80".parse().expect("an address");
            let mut request = ConnectRequest::to(address).to_http().expect("a request");
            request.headers_mut().insert(BAGGAGE, value.clone());
            prop_assert!(ConnectRequest::from_http(&request).is_ok(), "bad telemetry is no reason to refuse");
            request.headers_mut().insert(FORWARDED, value);
            prop_assert!(ConnectRequest::from_http(&request).is_ok(), "nor does what is only shown");
        }
    }
}

#[test]
fn a_client_that_is_not_one_identity_refuses_the_request() {
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    for (name, values, good) in [
        ("none", &[][..], true),
        ("one", &[web], true),
        ("two", &[web, web], false),
        (
            "two in one line",
            &["spiffe://cluster.local/ns/shop/sa/web,spiffe://cluster.local/ns/shop/sa/db"],
            false,
        ),
        ("empty", &[""], false),
        ("no SPIFFE ID of a workload", &["spiffe://cluster.local/web"], false),
    ] {
        let address = "10.0.0.1:80".parse().expect("an address");
        let mut request = ConnectRequest::to(address).to_http().expect("a request");
        for value in values {
            request.headers_mut().append(CLIENT, HeaderValue::from_static(value));
        }
        assert_eq!(ConnectRequest::from_http(&request).is_ok(), good, "{name}");
    }
}

#[test]
fn authorities_are_parsed_or_refused() {
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
fn last_forwarded_element_is_parsed() {
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
        // As Istio's ztunnel sends it to a waypoint.
        ("for=\"10.0.0.1:4711\";host=cart.shop.svc.cluster.local", Some(good)),
        ("for=\"10.0.0.2:1\", for=\"10.0.0.1:4711\"", Some(good)),
        ("", None),
    ] {
        let value = HeaderValue::from_str(text).expect("a value");
        assert_eq!(parse_forwarded(&value), expected, "{text}");
    }
}

fn read(headers: &[&'static str]) -> Option<Baggage> {
    let values: Vec<_> = headers.iter().map(|text| HeaderValue::from_static(text)).collect();
    Baggage::from_headers(&values)
}

fn said(cluster: &str, namespace: &str, workload: &str, service: &str, version: &str) -> Baggage {
    Baggage {
        cluster: cluster.to_owned(),
        namespace: namespace.to_owned(),
        workload_kind: "deployment".to_owned(),
        workload: workload.to_owned(),
        service: service.to_owned(),
        version: version.to_owned(),
        ..Baggage::default()
    }
}

#[test]
fn baggage_of_other_implementations_is_parsed() {
    let rows: [(&str, &[&str], Option<Baggage>); 7] = [
        (
            "Istio's ztunnel, 1.2x",
            &["k8s.cluster.name=K1,k8s.namespace.name=NS1,k8s.deployment.name=N1,service.name=N2,service.\
               version=V1"],
            Some(said("K1", "NS1", "N1", "N2", "V1")),
        ),
        (
            "with empty values",
            &["k8s.cluster.name=,k8s.namespace.name=,k8s.deployment.name=,service.name=,service.version="],
            None,
        ),
        (
            "one header each",
            &[
                "k8s.cluster.name=K1",
                "k8s.namespace.name=NS1",
                "k8s.deployment.name=N1",
                "service.name=N2",
                "service.version=V1",
            ],
            Some(said("K1", "NS1", "N1", "N2", "V1")),
        ),
        (
            "with a locality",
            &["k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=fake-deploy,\
               service.name=fake,service.version=latest,cloud.region=r,cloud.availability_zone=z"],
            Some(Baggage {
                region: "r".to_owned(),
                zone: "z".to_owned(),
                ..said("Kubernetes", "default", "fake-deploy", "fake", "latest")
            }),
        ),
        (
            "W3C: spaces, properties, escapes, foreign keys",
            &["k8s.cluster.name=K1 , k8s.namespace.name = \
               NS1;x=y,k8s.deployment.name=N1,service.name=we%20b,k8s.node.name=n1,broken,a=b=c,service.\
               version=V1"],
            Some(said("K1", "NS1", "N1", "we b", "V1")),
        ),
        (
            "the last of a key counts",
            &[
                "k8s.cluster.name=K1,k8s.namespace.name=NS1,k8s.deployment.name=N1,service.name=N2,service.\
                 version=V1",
                "service.version=V2",
            ],
            Some(said("K1", "NS1", "N1", "N2", "V2")),
        ),
        (
            "a percent sign that escapes nothing",
            &["k8s.cluster.name=K1,k8s.namespace.name=NS1,k8s.deployment.name=N1,service.name=50%,service.\
               version=%zz"],
            Some(said("K1", "NS1", "N1", "50%", "%zz")),
        ),
    ];
    for (name, headers, expected) in rows {
        assert_eq!(read(headers), expected, "{name}");
    }
}

#[test]
fn requests_match_other_implementations() {
    let rows = [
        (
            Baggage { region: "r".to_owned(), zone: "z".to_owned(), ..said("K1", "NS1", "N1", "N2", "V1") },
            Some(
                "k8s.cluster.name=K1,k8s.namespace.name=NS1,k8s.deployment.name=N1,service.name=N2,service.\
                 version=V1,cloud.region=r,cloud.availability_zone=z",
            ),
        ),
        (
            said("K1", "NS1", "N1", "N2", ""),
            Some("k8s.cluster.name=K1,k8s.namespace.name=NS1,k8s.deployment.name=N1,service.name=N2"),
        ),
        (
            Baggage { workload_kind: "cronjob".to_owned(), ..said("", "", "N1", "", "") },
            Some("k8s.cronjob.name=N1"),
        ),
        (Baggage::default(), None),
    ];
    for (baggage, expected) in rows {
        let header = baggage.to_header();
        assert_eq!(header.as_ref().map(|value| value.to_str().expect("a text")), expected);
    }
    let mut request = ConnectRequest::to("10.0.0.1:80".parse().expect("an address"));
    for (client, expected) in
        [("10.0.0.9:4711", "for=\"10.0.0.9:4711\""), ("[fd00::9]:4711", "for=\"[fd00::9]:4711\"")]
    {
        request.forwarded = client.parse().ok();
        let http = request.to_http().expect("a request");
        assert_eq!(http.headers()[FORWARDED], expected);
    }
}

#[test]
fn baggage_with_control_characters_is_ignored() {
    let read = read(&["k8s.namespace.name=shop,service.name=a%0Ab,service.version=%FF"]);
    let expected = Baggage { namespace: "shop".to_owned(), version: "%FF".to_owned(), ..Baggage::default() };
    assert_eq!(read, Some(expected));
}
