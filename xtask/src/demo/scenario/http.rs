//! HTTP in the demo: a market behind a waypoint, whose catalog gets a second version.
//!
//! Entry points: [`market`] adds it to the lab, [`Script::canary`] and [`Script::refused_path`] are the
//! steps.

use std::net::SocketAddr;

use ambit_harness::{Builder, NamespaceSpec, PodSpec, ServiceSpec, Waypoint, eventually};
use anyhow::{Result, ensure};

use super::{PORT, Script, address, step};

/// Requests of each stage of the canary.
const REQUESTS: usize = 100;
const CATALOG: &str = "market/catalog";
const WAYPOINT: &str = "market/waypoint";

const GATEWAY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: market, name: waypoint}
spec:
  gatewayClassName: ambit-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// Two versions of a catalog, one on each node, behind a waypoint.
pub(in crate::demo) fn market(lab: Builder) -> Builder {
    lab.namespace(NamespaceSpec::mesh("market").label("istio.io/use-waypoint", "waypoint"))
        .pod(PodSpec::new("market/v1").label("part", "catalog"))
        .pod(PodSpec::new("market/v2").label("part", "catalog").node(1))
        .service(ServiceSpec::new(CATALOG).selects_label("part", "catalog").port(80, PORT).protocol("http"))
        .service(ServiceSpec::new("market/v1").port(80, PORT).protocol("http"))
        .service(ServiceSpec::new("market/v2").port(80, PORT).protocol("http"))
        .service(ServiceSpec::new(WAYPOINT).port(15008, 15008))
        .object("market-gateway", GATEWAY)
        .object("market-route", &route(100, 0))
}

/// By weight to the two versions; `/admin` has a rule without a backend.
fn route(one: u32, two: u32) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{namespace: market, name: catalog}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: catalog}}]
  rules:
    - matches: [{{path: {{type: PathPrefix, value: /admin}}}}]
    - backendRefs: [{{name: v1, port: 80, weight: {one}}}, {{name: v2, port: 80, weight: {two}}}]
"
    )
}

/// How many requests each version answered.
#[derive(Debug)]
struct Answers {
    one: usize,
    two: usize,
}

impl Script<'_> {
    /// Starts the waypoint, and moves the catalog's requests from its first version to its second.
    pub(super) fn canary(&mut self) -> Result<Waypoint> {
        step("a waypoint stands in front of the market: a canary of the catalog, by an HTTPRoute's weights");
        let pod = PodSpec::new(WAYPOINT).node(1);
        let waypoint = self.lab.waypoint(pod, WAYPOINT, "")?;
        eventually("the waypoint serves", || {
            self.ask("shop/web", address(self.lab, CATALOG))?;
            ensure!(waypoint.metrics()?.sum("istio_requests_total", &[]) > 0.0, "it has seen no request");
            Ok(())
        })?;
        for (one, two) in [(100, 0), (90, 10), (0, 100)] {
            self.lab.apply("market-route", &route(one, two))?;
            // Enough requests that 10 % of them are none or half only once in 37,000 times.
            let answers = eventually("the weights act", || {
                // One that fails is not asked again.
                let answers = match self.ask_often(REQUESTS) {
                    Ok(answers) => answers,
                    failed => return Ok(failed),
                };
                let agrees = match two {
                    0 => answers.two == 0,
                    100 => answers.one == 0,
                    _ => answers.two > 0 && answers.two < answers.one,
                };
                ensure!(agrees, "{answers:?}");
                Ok(Ok(answers))
            })
            .flatten();
            if let Ok(Answers { one, two }) = &answers {
                println!("  of {REQUESTS} requests v1 answered {one}, v2 {two}");
            }
            self.expect(&format!("at {two} % for v2, no request fails"), || answers.map(drop));
        }
        self.expect("the waypoint has counted both versions, by the client's workload", || {
            let metrics = waypoint.metrics()?;
            for version in ["v1", "v2"] {
                let labels = [("destination_workload", version), ("source_workload", "web")];
                let count = metrics.sum("istio_requests_total", &labels);
                ensure!(count > 0.0, "{version}: {count}");
            }
            Ok(())
        });
        Ok(waypoint)
    }

    /// A path that a rule leads nowhere.
    pub(super) fn refused_path(&mut self, waypoint: &Waypoint) {
        step("web asks the catalog for /admin: its rule in the route has no backend");
        let catalog = address(self.lab, CATALOG);
        let status = |path: &str| self.status("shop/web", catalog, path);
        let (open, closed) = (status("/open"), status("/admin/keys"));
        println!(
            "  /open is answered with {}, /admin/keys with {}",
            open.as_deref().unwrap_or("nothing"),
            closed.as_deref().unwrap_or("nothing")
        );
        self.expect("the path is refused by the waypoint, others are not", || {
            ensure!(open? == "200", "/open");
            ensure!(closed? == "500", "/admin/keys");
            let labels = [("response_code", "500"), ("response_flags", "NC"), ("source_workload", "web")];
            let count = waypoint.metrics()?.sum("istio_requests_total", &labels);
            ensure!(count > 0.0, "the waypoint has counted no such request");
            Ok(())
        });
    }

    /// Requests of one client; an error if one fails.
    fn ask_often(&self, count: usize) -> Result<Answers> {
        let url = format!("http://{}/?[1-{count}]", address(self.lab, CATALOG));
        let said =
            self.lab.pod("shop/web").output("curl", &["--silent", "--fail", "--max-time", "20", &url])?;
        let of = |version: &str| said.lines().filter(|line| line.starts_with(version)).count();
        let answers = Answers { one: of("v1("), two: of("v2(") };
        ensure!(answers.one + answers.two == count, "{count} requests: {answers:?}: {said}");
        Ok(answers)
    }

    fn status(&self, pod: &str, to: SocketAddr, path: &str) -> Result<String> {
        let url = format!("http://{to}{path}");
        let arguments = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", &url];
        self.lab.pod(pod).output("curl", &arguments)
    }
}
