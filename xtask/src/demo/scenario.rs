//! What the demo does, step by step: each step sends real traffic, says what came of it, and checks it.

pub(super) mod http;

use std::net::SocketAddr;
use std::time::Duration;

use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, Process, ServiceSpec, eventually};
use anyhow::{Context, Result, bail, ensure};

use super::table::{self, Row, Table};
use crate::count::Count;

/// The shop: `web → cart → db` over both nodes, and a `legacy` namespace outside the mesh.
pub(super) fn lab() -> ambit_harness::Builder {
    Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/cart-1").label("app", "cart").account("cart"))
        .pod(PodSpec::new("shop/cart-2").label("app", "cart").account("cart").node(1))
        .pod(PodSpec::new("shop/db").node(1))
        .pod(PodSpec::new("legacy/customer"))
        .pod(PodSpec::new("legacy/printer").node(1))
        .service(ServiceSpec::new("shop/cart").port(80, PORT))
        .service(ServiceSpec::new("shop/db").port(80, PORT))
        .object("policy-db-from-cart", DB_FROM_CART)
        .object("policy-db-strict", DB_STRICT)
}

/// Where every shop listens.
const PORT: u16 = 8080;

const DB_FROM_CART: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: db-from-cart}
spec:
  selector: {matchLabels: {app: db}}
  action: ALLOW
  rules:
    - from:
        - source: {principals: [cluster.local/ns/shop/sa/cart]}
";

const DB_STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {namespace: shop, name: db-strict}
spec:
  selector: {matchLabels: {app: db}}
  mtls: {mode: STRICT}
";

/// A service's address and port as clients write it.
pub(super) fn address(lab: &Lab, service: &str) -> SocketAddr {
    SocketAddr::new(lab.service(service, Family::V4), 80)
}

/// The steps, with what came out so far.
#[derive(Debug)]
pub(super) struct Script<'lab> {
    lab: &'lab Lab,
    servers: Vec<Process>,
    count: Count,
    round: usize,
}

impl<'lab> Script<'lab> {
    /// Nothing has happened yet.
    pub(super) fn new(lab: &'lab Lab) -> Self {
        Self { lab, servers: Vec::new(), count: Count::default(), round: 0 }
    }

    /// How many checks held.
    pub(super) fn count(&self) -> Count {
        self.count
    }

    /// The shops, which end when they are dropped.
    pub(super) fn into_servers(self) -> Vec<Process> {
        self.servers
    }

    /// Every step, in order.
    pub(super) fn play(&mut self, table: &mut Table) -> Result<()> {
        self.open_shops()?;
        self.introduce();
        self.order(table)?;
        self.refused_by_policy(table)?;
        self.refused_without_identity();
        self.outside_the_mesh(table);
        self.daemon_dies()?;
        self.policy_changes()?;
        let waypoint = self.canary()?;
        self.refused_path(&waypoint);
        Ok(())
    }

    /// One round of the traffic that goes on while people watch.
    pub(super) fn traffic(&mut self, table: &mut Table) {
        let web = SocketAddr::new(self.lab.pod("shop/web").ip(Family::V4), PORT);
        // What comes of it is in the table; a refusal is part of the show.
        let _ = self.ask("legacy/customer", web);
        if self.round.is_multiple_of(3) {
            let _ = self.ask("shop/web", address(self.lab, "shop/db"));
        }
        self.round += 1;
        std::thread::sleep(Duration::from_millis(700));
        for row in table.rows(self.lab) {
            table::print(&row);
        }
    }

    fn open_shops(&mut self) -> Result<()> {
        let listen = format!("[::]:{PORT}");
        let (cart, db) =
            (address(self.lab, "shop/cart").to_string(), address(self.lab, "shop/db").to_string());
        let shops = [
            ("shop/web", "web", Some(&cart)),
            ("shop/cart-1", "cart", Some(&db)),
            ("shop/cart-2", "cart", Some(&db)),
            ("shop/db", "db", None),
            ("legacy/printer", "printer", None),
            ("market/v1", "v1", None),
            ("market/v2", "v2", None),
        ];
        for (pod, name, calls) in shops {
            let mut arguments = vec![name, "--listen", &listen];
            arguments.extend(calls.iter().flat_map(|calls| ["--calls", calls.as_str()]));
            let server = self
                .lab
                .pod(pod)
                .serve("shop", &arguments)
                .with_context(|| format!("{pod} does not open"))?;
            self.servers.push(server);
        }
        Ok(())
    }

    fn introduce(&self) {
        println!(
            "\nNamespaces \x1b[1mshop\x1b[0m and \x1b[1mmarket\x1b[0m are in the mesh (label \
             istio.io/dataplane-mode: ambient), \x1b[1mlegacy\x1b[0m is not."
        );
        for pod in self.lab.pods() {
            println!("  {:<16} {:<12} {}", pod.spec.key(), self.lab.node_of(&pod).name, pod.ip(Family::V4));
        }
        println!(
            "  services: cart at {}, db at {}",
            address(self.lab, "shop/cart"),
            address(self.lab, "shop/db")
        );
        println!(
            "  db takes connections from cart's identity only (AuthorizationPolicy), and only in mutual TLS \
             (PeerAuthentication STRICT)"
        );
    }

    fn order(&mut self, table: &mut Table) -> Result<()> {
        step("a customer orders: customer → web → cart → db");
        let web = self.lab.pod("shop/web");
        let capture = self.lab.capture()?;
        table.skip(self.lab);
        let mut answers = Vec::new();
        // Enough for both endpoints of cart to have had their turn, but for one time in 2^19.
        for _ in 0..20 {
            answers.push(self.ask("legacy/customer", SocketAddr::new(web.ip(Family::V4), PORT)));
        }
        let trace = capture.stop()?;
        let all_answered =
            answers.iter().all(|answer| answer.as_ref().is_ok_and(|text| text.contains("<- db(")));
        if let Some(Ok(answer)) = answers.first() {
            println!(
                "  the answer names each shop with the address it saw its client under:\n    {}",
                answer.trim()
            );
        }
        self.expect("20 orders of 20 reach db through cart", || {
            ensure!(all_answered, "{answers:?}");
            Ok(())
        });
        let seen = format!("cart({})", web.ip(Family::V4));
        self.expect("cart sees web's own address, not a proxy's", || {
            ensure!(answers.iter().flatten().all(|answer| answer.contains(&seen)), "{answers:?}");
            Ok(())
        });
        let carts =
            ["shop/cart-1", "shop/cart-2"].map(|cart| format!("db({})", self.lab.pod(cart).ip(Family::V4)));
        self.expect("both endpoints of cart took a share", || {
            let has = |cart: &String| answers.iter().flatten().any(|answer| answer.contains(cart));
            ensure!(carts.iter().all(has), "{answers:?}");
            Ok(())
        });
        let (bytes, plain) = (trace.payload_bytes(), trace.holding(b"db("));
        println!("  between the nodes: {bytes} bytes captured, {plain} packets with a readable answer of db");
        self.expect("the wire between the nodes carried the orders, none of them readable", || {
            ensure!(bytes > 10_000 && plain == 0, "{bytes} bytes, {plain} readable");
            Ok(())
        });
        let to_db = |row: &&Row| row.to == "db" && row.direction == "server";
        let rows = self.reported(table, |rows| rows.iter().filter(to_db).count() >= 20)?;
        table::head();
        for row in rows.iter().rev().filter(|row| row.direction == "server").take(4) {
            table::print(row);
        }
        self.expect("db's daemon knew cart's identity each time", || {
            // By its certificate from another node; by its enrolment on the same node, where the kernel
            // admits connections with a cached verdict.
            let proven = rows.iter().filter(to_db).filter(|row| {
                row.identity == "cluster.local/ns/shop/sa/cart" && ["tunnel", "direct"].contains(&&*row.path)
            });
            let proven = proven.count();
            ensure!(proven == 20, "{proven} of 20: {rows:?}");
            Ok(())
        });
        Ok(())
    }

    fn refused_by_policy(&mut self, table: &mut Table) -> Result<()> {
        step("web asks db itself: no policy allows that");
        table.skip(self.lab);
        let answer = self.ask("shop/web", address(self.lab, "shop/db"));
        self.expect("web gets an error", || match answer {
            Err(_) => Ok(()),
            Ok(text) => bail!("web got {text:?}"),
        });
        let refused = |row: &Row| row.to == "db" && row.direction == "server" && !row.error.is_empty();
        let rows = self.reported(table, |rows| rows.iter().any(refused))?;
        table::head();
        for row in &rows {
            table::print(row);
        }
        self.expect("db's daemon names the identity that was refused", || {
            let row = rows.iter().find(|row| refused(row)).context("no record")?;
            ensure!(row.identity == "cluster.local/ns/shop/sa/web", "{row:?}");
            Ok(())
        });
        Ok(())
    }

    fn refused_without_identity(&mut self) {
        step("the customer asks db itself, in plaintext: db is STRICT");
        let db = SocketAddr::new(self.lab.pod("shop/db").ip(Family::V4), PORT);
        let answer = self.ask("legacy/customer", db);
        println!(
            "  the kernel answers for db: {}",
            answer.as_ref().err().map(ToString::to_string).unwrap_or_default()
        );
        self.expect("the customer is refused", || match answer {
            Err(_) => Ok(()),
            Ok(text) => bail!("the customer got {text:?}"),
        });
    }

    fn outside_the_mesh(&mut self, table: &mut Table) {
        step("web uses a printer outside the mesh: nothing stands between");
        table.skip(self.lab);
        let printer = SocketAddr::new(self.lab.pod("legacy/printer").ip(Family::V4), PORT);
        let answer = self.ask("shop/web", printer);
        let web = format!("printer({})", self.lab.pod("shop/web").ip(Family::V4));
        println!("  the printer answers web directly: {}", answer.as_deref().unwrap_or("no answer").trim());
        self.expect("the printer is reached natively", || {
            ensure!(answer.as_ref().is_ok_and(|text| text.contains(&web)), "{answer:?}");
            Ok(())
        });
        let rows = table.rows(self.lab);
        self.expect("no daemon has seen it", || {
            let address = printer.ip().to_string();
            let is_printer = |row: &Row| row.to.starts_with("printer") || row.to.starts_with(&address);
            ensure!(!rows.iter().any(is_printer), "{rows:?}");
            Ok(())
        });
    }

    fn daemon_dies(&mut self) -> Result<()> {
        step("the daemon of db's node is killed");
        self.lab.nodes[1].ztunnel.kill()?;
        let capture = self.lab.capture()?;
        let answer = self.ask("shop/cart-1", address(self.lab, "shop/db"));
        let trace = capture.stop()?;
        println!("  cart gets: {}", answer.as_ref().err().map(ToString::to_string).unwrap_or_default());
        self.expect("cart gets an error", || {
            ensure!(answer.is_err(), "{answer:?}");
            Ok(())
        });
        self.expect("and never plaintext", || {
            ensure!(trace.holding(b"GET / HTTP") == 0, "a request was readable between the nodes");
            Ok(())
        });
        self.lab.nodes[1].start()?;
        let recovered =
            eventually("cart reaches db again", || self.ask("shop/cart-1", address(self.lab, "shop/db")));
        self.expect("back again, the pods recover untouched", || recovered.map(drop));
        Ok(())
    }

    fn policy_changes(&mut self) -> Result<()> {
        step("the policy file goes: web may ask db, until the file is back");
        self.lab.remove("policy-db-from-cart")?;
        let allowed = eventually("web reaches db", || self.ask("shop/web", address(self.lab, "shop/db")));
        self.expect("without the policy web reaches db", || allowed.map(drop));
        self.lab.apply("policy-db-from-cart", DB_FROM_CART)?;
        let refused =
            eventually("web is refused again", || match self.ask("shop/web", address(self.lab, "shop/db")) {
                Err(_) => Ok(()),
                Ok(text) => bail!("web got {text:?}"),
            });
        self.expect("with the policy it is refused again", || refused);
        Ok(())
    }

    /// `curl` in a pod; its answer, or what it says went wrong.
    fn ask(&self, pod: &str, to: SocketAddr) -> Result<String> {
        let url = format!("http://{to}/");
        let arguments = ["--silent", "--show-error", "--fail-with-body", "--max-time", "20", &url];
        let mut command = self.lab.pod(pod).command("curl");
        let output = command.args(arguments).output().context("failed to run curl")?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} {}", said.trim(), String::from_utf8_lossy(&output.stdout).trim())
    }

    /// Waits until the access logs hold what a step expects of them.
    fn reported(&self, table: &mut Table, enough: impl Fn(&[Row]) -> bool) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        eventually("the daemons have reported", || {
            rows.extend(table.rows(self.lab));
            ensure!(enough(&rows), "so far: {rows:?}");
            Ok(())
        })?;
        Ok(rows)
    }

    fn expect(&mut self, what: &str, check: impl FnOnce() -> Result<()>) {
        match check() {
            Ok(()) => {
                self.count.passed += 1;
                println!("  \x1b[32m✓\x1b[0m {what}");
            }
            Err(error) => {
                self.count.failed += 1;
                println!("  \x1b[31m✗\x1b[0m {what}: {error:#}");
            }
        }
    }
}

fn step(what: &str) {
    println!("\n\x1b[1m{what}\x1b[0m");
}
