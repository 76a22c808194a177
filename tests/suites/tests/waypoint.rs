//! A waypoint between real pods: the controller, two nodes' ztunnels, the waypoint's program and HTTP.

use std::net::SocketAddr;

use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, ServiceSpec, Waypoint, eventually};
use ambit_suites::shares::{Counts, fit};
use ambit_suites::web::{self, Client, WebServer, get, get_and_end};
use ambit_suites::{MARKER, Rows};
use anyhow::{Context, Result, bail, ensure};

const PORT: u16 = 8080;
/// Requests of each split by weight.
const DRAWS: u32 = 600;

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {namespace: shop, \
                       name: waypoint}\nspec:\n  gatewayClassName: ambit-waypoint\n  listeners: [{name: \
                       mesh, port: 15008, protocol: HBONE}]\n";

/// A route of the service cart whose rules are these.
fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{namespace: shop, name: \
         cart}}\nspec:\n  parentRefs: [{{group: \"\", kind: Service, name: cart, port: 80}}]\n  \
         rules:\n{rules}"
    )
}

/// Two backends by weight.
fn split(one: u32, two: u32) -> String {
    route(&format!(
        "    - backendRefs: [{{name: one, port: 80, weight: {one}}}, {{name: two, port: 80, weight: \
         {two}}}]\n"
    ))
}

struct Shop {
    lab: Lab,
    servers: Vec<WebServer>,
}

impl Shop {
    /// A client, two versions of a service on both nodes, and a client outside the mesh.
    fn start() -> Result<Self> {
        let lab = Lab::builder()
            .namespace(NamespaceSpec::mesh("shop"))
            .namespace(NamespaceSpec::new("legacy"))
            .pod(PodSpec::new("shop/web"))
            .pod(PodSpec::new("shop/other"))
            .pod(PodSpec::new("shop/one").node(1).label("shop", "cart"))
            .pod(PodSpec::new("shop/two").label("shop", "cart"))
            .pod(PodSpec::new("legacy/old"))
            .service(ServiceSpec::new("shop/cart").selects_label("shop", "cart").port(80, PORT))
            .service(ServiceSpec::new("shop/one").port(80, PORT).protocol("http"))
            .service(ServiceSpec::new("shop/two").port(80, PORT).protocol("http"))
            .service(ServiceSpec::new("shop/waypoint").selects("waypoint").port(15008, 15008))
            .object("gateway", GATEWAY)
            .start()?;
        let servers =
            ["one", "two"].map(|name| WebServer::start(&lab.pod(&format!("shop/{name}")), name, PORT));
        Ok(Self { lab, servers: servers.into_iter().collect::<Result<_>>()? })
    }

    fn waypoint(&self, name: &str, node: usize) -> Result<Waypoint> {
        let pod =
            PodSpec::new(&format!("shop/{name}")).account("waypoint").label("app", "waypoint").node(node);
        self.lab.waypoint(pod, "shop/waypoint", "")
    }

    fn cart(&self) -> SocketAddr {
        SocketAddr::new(self.lab.service("shop/cart", Family::V4), 80)
    }

    /// Whether a request of the client has passed a waypoint: it says so to the server.
    fn passes(&self) -> Result<bool> {
        let answer = get(&self.lab.pod("shop/web"), self.cart(), "/", &[])?;
        ensure!(answer.status == 200, "status {}", answer.status);
        Ok(answer.seen("x-forwarded-client-cert").is_some())
    }

    /// Binds the service to the waypoint, and waits until that acts.
    fn bind(&self) -> Result<()> {
        self.lab.label_namespace(NamespaceSpec::mesh("shop").label("istio.io/use-waypoint", "waypoint"))?;
        eventually("requests pass the waypoint", || {
            ensure!(self.passes()?, "they do not");
            Ok(())
        })
    }

    /// Applies a route, and waits until a request shows it.
    fn routed(&self, yaml: &str, path: &str, headers: &[(&str, &str)], shows: &str) -> Result<()> {
        self.lab.apply("route", yaml)?;
        let web = self.lab.pod("shop/web");
        eventually("the route acts", || {
            // Several: without the route each backend answers now and then.
            for _ in 0..20 {
                let answer = get(&web, self.cart(), path, headers)?;
                let shown = format!("{} {}", answer.status, answer.server());
                ensure!(shown == shows, "{shown}, not {shows}");
            }
            Ok(())
        })
    }
}

#[test]
fn requests_are_routed_by_their_service_routes() -> Result<()> {
    let shop = Shop::start()?;
    let lab = &shop.lab;
    let web = lab.pod("shop/web");
    let mut table = Rows::new();
    let waypoint = shop.waypoint("waypoint-0", 1)?;
    let capture = lab.capture()?;
    table.row("a binding acts once the waypoint is ready", || shop.bind());
    table.row("the server learns who asks, from the waypoint alone", || {
        let forged = [("x-forwarded-client-cert", "By=me;URI=you"), ("forwarded", "for=1.2.3.4")];
        let answer = get(&web, shop.cart(), "/", &forged)?;
        let cert = answer.seen("x-forwarded-client-cert").context("no x-forwarded-client-cert")?;
        let expected =
            "By=spiffe://cluster.local/ns/shop/sa/waypoint;URI=spiffe://cluster.local/ns/shop/sa/web";
        ensure!(cert == expected, "{cert}");
        let forwarded = answer.seen("forwarded").context("no forwarded")?;
        ensure!(forwarded.contains(&web.v4.to_string()) && !forwarded.contains("1.2.3.4"), "{forwarded}");
        Ok(())
    });
    table.row("blue-green by a header, A/B by a cookie, the rest as before", || {
        let rules = "    - matches: [{headers: [{name: version, value: green}]}]\n      backendRefs: [{name: \
                     two, port: 80}]\n    - matches: [{headers: [{type: RegularExpression, name: cookie, \
                     value: '(^|.*; )group=b(;.*|$)'}]}]\n      backendRefs: [{name: two, port: 80}]\n    - \
                     backendRefs: [{name: one, port: 80}]\n";
        shop.routed(&route(rules), "/", &[("version", "green")], "200 two")?;
        for (headers, expected) in [
            (&[("version", "blue")][..], "one"),
            (&[("cookie", "a=1; group=b; c=2")][..], "two"),
            (&[("cookie", "group=bb")][..], "one"),
            (&[][..], "one"),
        ] {
            for _ in 0..10 {
                let answer = get(&web, shop.cart(), "/", headers)?;
                ensure!(answer.server() == expected, "{headers:?}: {}", answer.server());
            }
        }
        Ok(())
    });
    table.row("rewritten, redirected, not found, an invalid backend", || {
        let rules = [
            "    - matches: [{path: {type: PathPrefix, value: /old}}]\n",
            "      filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, ",
            "replacePrefixMatch: /new}}}]\n      backendRefs: [{name: one, port: 80}]\n",
            "    - matches: [{path: {type: PathPrefix, value: /moved}}]\n",
            "      filters: [{type: RequestRedirect, requestRedirect: {statusCode: 301, hostname: ",
            "else.example}}]\n",
            "    - matches: [{path: {type: PathPrefix, value: /gone}}]\n",
            "      backendRefs: [{name: missing, port: 80}]\n",
        ]
        .concat();
        shop.routed(&route(&rules), "/elsewhere", &[], "404 none")?;
        let answer = get(&web, shop.cart(), "/old/shoes", &[])?;
        ensure!(answer.body.starts_with("GET /new/shoes HTTP/1.1"), "{}", answer.body);
        let answer = get(&web, shop.cart(), "/moved/on", &[])?;
        let location = answer.header("location").unwrap_or_default();
        ensure!(answer.status == 301 && location == "http://else.example/moved/on", "{}", answer.head);
        let answer = get(&web, shop.cart(), "/gone", &[])?;
        ensure!(answer.status == 500, "{}", answer.head);
        Ok(())
    });
    table.row("weights", || {
        shop.routed(&split(1, 0), "/", &[], "200 one")?;
        shop.lab.apply("route", &split(3, 1))?;
        eventually("both backends serve", || {
            ensure!(get(&web, shop.cart(), "/", &[])?.server() == "two");
            Ok(())
        })?;
        let mut counts = Counts::new();
        let mut client = Client::connect(&web, shop.cart())?;
        for _ in 0..DRAWS {
            let answer = client.get("/", &[])?;
            *counts.entry(answer.server().to_owned()).or_default() += 1;
        }
        let chi = fit(&counts, &[("one", 3), ("two", 1)])?;
        println!("weights 3:1 in {DRAWS} requests: {counts:?}, chi-square {chi}");
        ensure!(chi.agrees(), "{counts:?}: {chi}");
        Ok(())
    });
    table.row("curl speaks HTTP/2 and HTTP/1.1 through it", || {
        for version in ["--http2-prior-knowledge", "--http1.1"] {
            let url = format!("http://{}/curl", shop.cart());
            let said = web.output("curl", &["--silent", "--fail", version, &url])?;
            ensure!(
                said.starts_with("GET /curl HTTP/1.1") && said.contains("x-forwarded-client-cert"),
                "{said}"
            );
        }
        Ok(())
    });
    table.row("a client that ends its side after its request is answered", || {
        for _ in 0..20 {
            let answer = get_and_end(&web, shop.cart(), "/half")?;
            ensure!(answer.status == 200 && answer.body.starts_with("GET /half"), "{}", answer.head);
        }
        Ok(())
    });
    table.row("requests are counted with Istio's names", || {
        let labels = [
            ("reporter", "waypoint"),
            ("source_workload", "web"),
            ("destination_service_name", "one"),
            ("response_code", "200"),
        ];
        let count = waypoint.metrics()?.sum("istio_requests_total", &labels);
        ensure!(count > 100.0, "{count}");
        Ok(())
    });
    table.row("nothing of it was readable on the wire", || {
        let marker = String::from_utf8_lossy(MARKER).into_owned();
        let before = lab.capture()?;
        for _ in 0..20 {
            let answer = get(&web, shop.cart(), "/", &[("marker", &marker)])?;
            ensure!(answer.seen("marker") == Some(&marker), "{}", answer.body);
        }
        for trace in [before.stop()?, capture.stop()?] {
            ensure!(trace.tcp_port(15008) > 0, "no packet of a tunnel");
            ensure!(trace.holding(MARKER) == 0, "{} packets are readable", trace.holding(MARKER));
        }
        Ok(())
    });
    table.finish();
    shop.lab.finish()
}

#[test]
fn no_request_fails_while_waypoints_come_and_go() -> Result<()> {
    let shop = Shop::start()?;
    let lab = &shop.lab;
    let web = lab.pod("shop/web");
    let mut table = Rows::new();
    let load = web::load(&web, shop.cart());
    load.progress(20)?;
    let first = shop.waypoint("waypoint-0", 1)?;
    let row = |name: &str, table: &mut Rows, act: &dyn Fn() -> Result<()>| {
        table.row(name, || {
            act()?;
            load.progress(50)
        });
    };
    row("a waypoint is added", &mut table, &|| shop.bind());
    row("a canary from 0 to 100 %", &mut table, &|| {
        for weight in [0, 1, 10, 50, 99, 100] {
            lab.apply("route", &split(100 - weight, weight))?;
            load.progress(20)?;
        }
        eventually("all go to the new version", || {
            for _ in 0..20 {
                let server = get(&web, shop.cart(), "/", &[])?.server().to_owned();
                ensure!(server == "two", "{server}");
            }
            Ok(())
        })
    });
    let second = shop.waypoint("waypoint-1", 0)?;
    row("it is scaled up", &mut table, &|| {
        eventually("the second one serves", || {
            ensure!(get(&web, shop.cart(), "/", &[])?.status == 200);
            let served = second.metrics()?.sum("istio_requests_total", &[]);
            ensure!(served > 0.0, "it has served nothing");
            Ok(())
        })
    });
    row("and down: the first one drains", &mut table, &|| {
        // As Kubernetes does it: the endpoint goes at the moment of the signal.
        lab.update_pod(first.pod.spec.clone().unready())?;
        let status = first.daemon.stop()?;
        ensure!(status.success(), "{status}: {}", first.daemon.tail(20));
        Ok(())
    });
    row("the binding is removed", &mut table, &|| {
        lab.label_namespace(NamespaceSpec::mesh("shop"))?;
        eventually("requests go without it", || {
            ensure!(!shop.passes()?, "they pass it");
            Ok(())
        })
    });
    table.row("no request failed", || {
        let report = load.stop();
        report.flawless()?;
        let answered = report.connections + report.round_trips;
        ensure!(answered > 300, "hardly any load: {answered}");
        Ok(())
    });
    table.finish();
    drop((first, second));
    shop.lab.finish()
}

#[test]
fn nothing_goes_past_a_waypoint() -> Result<()> {
    let shop = Shop::start()?;
    let lab = &shop.lab;
    let (web, other, old) = (lab.pod("shop/web"), lab.pod("shop/other"), lab.pod("legacy/old"));
    let mut table = Rows::new();
    let waypoint = shop.waypoint("waypoint-0", 1)?;
    shop.bind()?;
    table.row("a policy at the destination means the client, not the waypoint", || {
        lab.apply(
            "policy",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: \
             cart}\nspec: {selector: {matchLabels: {shop: cart}}, action: ALLOW, rules: [{from: [{source: \
             {principals: [cluster.local/ns/shop/sa/web]}}]}]}\n",
        )?;
        eventually("the other client is refused", || {
            let status = get(&other, shop.cart(), "/", &[])?.status;
            ensure!(status == 503, "{status}");
            Ok(())
        })?;
        ensure!(shop.passes()?, "the permitted one passes the waypoint");
        lab.remove("policy")?;
        eventually("both are permitted again", || {
            ensure!(get(&other, shop.cart(), "/", &[])?.status == 200);
            Ok(())
        })
    });
    let pod = SocketAddr::new(lab.pod("shop/one").ip(Family::V4), PORT);
    table.row("who requires a waypoint takes nothing that did not come through it", || {
        ensure!(get(&web, pod, "/", &[])?.status == 200, "by its address, at first");
        ensure!(get(&old, pod, "/", &[])?.status == 200, "in plaintext, at first");
        let spec = lab.pod("shop/one").spec.label("ambit.dev/require-waypoint", "enabled");
        lab.update_pod(spec)?;
        eventually("others are refused", || {
            for (name, client) in [("web", &web), ("old", &old)] {
                if let Ok(answer) = get(client, pod, "/", &[]) {
                    bail!("{name} got {}", answer.status);
                }
            }
            Ok(())
        })?;
        for _ in 0..20 {
            ensure!(shop.passes()?, "through the waypoint");
        }
        Ok(())
    });
    table.row("a killed waypoint is an error with a reason, not a way past it", || {
        let capture = lab.capture()?;
        let mark = lab.nodes[0].ztunnel.log_mark();
        waypoint.daemon.kill()?;
        let requests: Vec<usize> = shop.servers.iter().map(WebServer::requests).collect();
        for _ in 0..20 {
            if let Ok(answer) = get(&web, shop.cart(), "/", &[("marker", &String::from_utf8_lossy(MARKER))]) {
                bail!("answered with {}", answer.status);
            }
        }
        let after: Vec<usize> = shop.servers.iter().map(WebServer::requests).collect();
        ensure!(requests == after, "a server was reached");
        let trace = capture.stop()?;
        ensure!(trace.holding(MARKER) == 0, "{} packets are readable", trace.holding(MARKER));
        let records = lab.nodes[0].records_since(mark);
        let reasons: Vec<_> = records.iter().filter_map(|record| record["reason"].as_str()).collect();
        ensure!(!reasons.is_empty(), "no reason in the log: {records:?}");
        println!("reasons: {reasons:?}");
        Ok(())
    });
    table.row("and serves again when it is back", || {
        waypoint.start()?;
        eventually("requests pass it", || {
            ensure!(shop.passes()?, "they do not");
            Ok(())
        })
    });
    table.finish();
    shop.lab.finish()
}
