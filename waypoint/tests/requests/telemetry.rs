//! What is counted of requests.

use ambit_core::model::AppProtocol;
use ambit_core::route::{Filter, Redirect, RedirectStatus};
use ambit_daemon_kit::telemetry::metrics::Metrics;
use ambit_waypoint::metrics;
use ambit_waypoint::worker::Thread;
use ambit_xds::client::Status;
use http::HeaderValue;
use tokio::sync::watch;

use crate::lab::{Lab, echo, filtered, get, get2, routes, told};

fn scrape(lab: &Lab) -> String {
    let exposed = Metrics::new("waypoint");
    let thread = Thread { worker: lab.worker.clone(), handle: tokio::runtime::Handle::current() };
    metrics::show(&[thread], watch::channel(Status::default()).1, &exposed);
    exposed.render()
}

/// The value of the one sample of a family that has all of these labels.
fn value(text: &str, family: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let mut found = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once('{')?;
        let (shown, value) = rest.rsplit_once("} ")?;
        (name == family && labels.iter().all(|label| shown.contains(label))).then_some(value)
    });
    let value = found.next()?;
    assert!(found.next().is_none(), "several samples of {family} have {labels:?}");
    value.parse().ok()
}

#[tokio::test]
async fn requests_are_counted_with_istios_labels() {
    let lab = Lab::new().await;
    // Names of this test's own: metrics are the process's.
    let counted = lab.service("counted", 100, AppProtocol::Http11);
    lab.app("counted-1", 11, "counted", echo("counted-1")).await;
    let redirected = lab.service("redirected", 101, AppProtocol::Http11);
    let redirect =
        Redirect { scheme: None, hostname: None, path: None, port: None, status: RedirectStatus::Found };
    lab.put([routes("redirected", vec![filtered(vec![Filter::Redirect(redirect)], "redirected")])]);
    let absent = lab.service("absent", 102, AppProtocol::Grpc);

    let mut client = lab.http1(counted).await;
    for _ in 0..3 {
        client.ready().await.expect("kept alive");
        told(client.send_request(get("/")).await.expect("a response")).await;
    }
    told(lab.http1(redirected).await.send_request(get("/")).await.expect("a response")).await;
    let mut grpc = get2("/pkg.Service/Method");
    grpc.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    told(lab.http2(absent).await.send_request(grpc).await.expect("a response")).await;

    let text = scrape(&lab);
    let requests = |labels: &[(&str, &str)]| value(&text, "istio_requests_total", labels);
    let whole = [
        ("reporter", "waypoint"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/web"),
        ("source_workload", "web"),
        ("source_workload_namespace", "shop"),
        ("destination_workload", "counted-1"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/counted-1"),
        ("destination_service", "counted.shop.svc.cluster.local"),
        ("destination_service_name", "counted"),
    ];
    assert_eq!(requests(&whole), Some(3.0), "{text}");
    assert_eq!(requests(&[("destination_service_name", "redirected"), ("response_code", "302")]), Some(1.0));
    let failed = [
        ("destination_service_name", "absent"),
        ("request_protocol", "grpc"),
        ("grpc_response_status", "14"),
        ("response_flags", "UH"),
    ];
    assert_eq!(requests(&failed), Some(1.0));
    for family in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
        let count = value(&text, &format!("{family}_count"), &[("destination_workload", "counted-1")]);
        assert_eq!(count, Some(3.0), "{family}");
    }
    let bytes = value(&text, "istio_response_bytes_sum", &[("destination_workload", "counted-1")]);
    assert!(bytes.is_some_and(|bytes| bytes > 30.0), "{bytes:?}");
}
