//! Which sources are allowed: AuthorizationPolicy and PeerAuthentication on every path, probes, and what
//! happens to open connections.
//!
//! The decisions themselves are tested as pure tables in the core; here a selection of them is asked on the
//! wire, from the same identities on the destination's node (the direct path) and on another (the tunnel).

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ambit_harness::{Family, Lab, NamespaceSpec, Place, Pod, PodSpec, eventually, network};
use ambit_suites::paths::{ask_and_trace, enforces, no_policy_in_force, policies, policy_in_force, warm};
use ambit_suites::shop::{DB, FAMILIES, PROBE, shop};
use ambit_suites::{Rows, Server, ask, connect, greeted};
use anyhow::{Context, Result, bail, ensure};

/// The database's second port.
const OTHER: u16 = 5433;

/// Policies for the database, and the sources that are allowed then. All others are denied.
struct Row {
    name: &'static str,
    /// `spec` of an AuthorizationPolicy, or after `PEER` of a PeerAuthentication; several are joined by
    /// `AND`.
    spec: &'static str,
    scope: Scope,
    allowed: &'static [&'static str],
    /// The same for the second port.
    other: &'static [&'static str],
    from: From,
    /// Whether the kernel may cache the verdict for allowed sources on its node.
    remembered: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Scope {
    Selector,
    Namespace,
    Mesh,
    DryRun,
}

/// From which nodes allowed sources get through.
#[derive(Clone, Copy, PartialEq)]
enum From {
    Both,
    Near,
    Far,
}

const MESH: &[&str] = &["web", "cart", "teller"];
const ALL: &[&str] = &["web", "cart", "teller", "old"];

const fn row(name: &'static str, spec: &'static str, allowed: &'static [&'static str]) -> Row {
    Row { name, spec, scope: Scope::Selector, allowed, other: allowed, from: From::Both, remembered: true }
}

impl Row {
    const fn other(self, other: &'static [&'static str]) -> Self {
        Self { other, ..self }
    }

    const fn scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// Allowed from one node only, which depends on the source's address.
    const fn from(self, from: From) -> Self {
        Self { from, remembered: false, ..self }
    }

    const fn never_direct(self) -> Self {
        Self { remembered: false, ..self }
    }
}

const ROWS: &[Row] = &[
    row(
        "allow-principal",
        "action: ALLOW\n  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]",
        &["web"],
    ),
    row(
        "allow-principal-prefix",
        "action: ALLOW\n  rules: [{from: [{source: {principals: [cluster.local/ns/shop/*]}}]}]",
        &["web", "cart"],
    ),
    row(
        "allow-principal-suffix",
        "action: ALLOW\n  rules: [{from: [{source: {principals: [\"*/sa/teller\"]}}]}]",
        &["teller"],
    ),
    row("allow-any-principal", "action: ALLOW\n  rules: [{from: [{source: {principals: [\"*\"]}}]}]", MESH),
    row("deny-no-principal", "action: DENY\n  rules: [{from: [{source: {notPrincipals: [\"*\"]}}]}]", MESH),
    row("allow-namespace", "action: ALLOW\n  rules: [{from: [{source: {namespaces: [bank]}}]}]", &["teller"]),
    row(
        "allow-other-namespaces",
        "action: ALLOW\n  rules: [{from: [{source: {principals: [\"*\"], notNamespaces: [bank]}}]}]",
        &["web", "cart"],
    ),
    row(
        "allow-other-principals",
        "action: ALLOW\n  rules: [{from: [{source: {namespaces: [shop], notPrincipals: [\"*/sa/web\"]}}]}]",
        &["cart"],
    ),
    row(
        "allow-service-account",
        "action: ALLOW\n  rules: [{from: [{source: {serviceAccounts: [shop/cart]}}]}]",
        &["cart"],
    ),
    row(
        "allow-when-namespace",
        "action: ALLOW\n  rules: [{when: [{key: source.namespace, values: [shop]}]}]",
        &["web", "cart"],
    ),
    row(
        "deny-principal",
        "action: DENY\n  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]",
        &["cart", "teller", "old"],
    ),
    row("deny-all", "action: DENY\n  rules: [{}]", &[]),
    row("allow-nothing", "action: ALLOW", &[]),
    row("allow-all", "action: ALLOW\n  rules: [{}]", ALL),
    row("allow-port", "action: ALLOW\n  rules: [{to: [{operation: {ports: [\"5432\"]}}]}]", ALL).other(&[]),
    row("deny-port", "action: DENY\n  rules: [{to: [{operation: {ports: [\"5433\"]}}]}]", ALL).other(&[]),
    row("allow-other-ports", "action: ALLOW\n  rules: [{to: [{operation: {notPorts: [\"5432\"]}}]}]", &[])
        .other(ALL),
    row("allow-address-far", "action: ALLOW\n  rules: [{from: [{source: {ipBlocks: [10.10.0.0/24]}}]}]", ALL)
        .from(From::Far),
    row(
        "allow-address-near",
        "action: ALLOW\n  rules: [{from: [{source: {ipBlocks: [10.10.1.0/24]}}]}]",
        ALL,
    )
    .from(From::Near),
    row(
        "deny-other-addresses",
        "action: DENY\n  rules: [{from: [{source: {notIpBlocks: [10.10.1.0/24]}}]}]",
        ALL,
    )
    .from(From::Near),
    row("http-rule-never-allows", "action: ALLOW\n  rules: [{to: [{operation: {methods: [GET]}}]}]", &[]),
    row(
        "http-rule-denies-the-rest",
        "action: DENY\n  rules: [{from: [{source: {namespaces: [bank]}}], to: [{operation: {methods: \
         [GET]}}]}]",
        &["web", "cart", "old"],
    ),
    row("http-rule-denies-all", "action: DENY\n  rules: [{to: [{operation: {paths: [\"/admin\"]}}]}]", &[]),
    row(
        "deny-before-allow",
        "action: ALLOW\n  rules: [{}]AND action: DENY\n  rules: [{from: [{source: {namespaces: [bank]}}]}]",
        &["web", "cart", "old"],
    ),
    row(
        "either-allow",
        "action: ALLOW\n  rules: [{from: [{source: {namespaces: [bank]}}]}]AND action: ALLOW\n  rules: \
         [{from: [{source: {principals: [\"*/sa/web\"]}}]}]",
        &["web", "teller"],
    ),
    row("strict", "PEER mtls: {mode: STRICT}", MESH),
    row(
        "strict-but-not-this-port",
        "PEER mtls: {mode: STRICT}\n  portLevelMtls: {\"5432\": {mode: PERMISSIVE}}",
        ALL,
    )
    .other(MESH),
    row(
        "permissive-but-not-this-port",
        "PEER mtls: {mode: PERMISSIVE}\n  portLevelMtls: {\"5432\": {mode: STRICT}}",
        MESH,
    )
    .other(ALL),
    row("strict-and-allow-all", "PEER mtls: {mode: STRICT}AND action: ALLOW\n  rules: [{}]", MESH),
    row("namespace-wide", "action: ALLOW\n  rules: [{from: [{source: {namespaces: [bank]}}]}]", &["teller"])
        .scope(Scope::Namespace),
    row(
        "mesh-wide",
        "action: DENY\n  rules: [{from: [{source: {namespaces: [bank]}}]}]",
        &["web", "cart", "old"],
    )
    .scope(Scope::Mesh),
    row("dry-run", "action: DENY\n  rules: [{}]", ALL).scope(Scope::DryRun).never_direct(),
];

impl Row {
    /// The policies' objects, and their names as the daemon knows them.
    fn objects(&self) -> (String, Vec<String>) {
        let namespace = if self.scope == Scope::Mesh { "ambit-system" } else { "shop" };
        let (mut documents, mut names) = (Vec::new(), Vec::new());
        for (number, spec) in self.spec.split("AND ").enumerate() {
            let name = format!("{}-{number}", self.name);
            let (kind, spec) = match spec.strip_prefix("PEER ") {
                Some(rest) => ("PeerAuthentication", rest),
                None => ("AuthorizationPolicy", spec),
            };
            let selector = match self.scope {
                Scope::Selector | Scope::DryRun => "  selector: {matchLabels: {app: db}}\n",
                Scope::Namespace | Scope::Mesh => "",
            };
            let annotations = if self.scope == Scope::DryRun {
                "  annotations: {istio.io/dry-run: \"true\"}\n"
            } else {
                ""
            };
            documents.push(format!(
                "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata:\n  namespace: \
                     {namespace}\n  name: {name}\n{annotations}spec:\n{selector}  {spec}\n"
            ));
            let converted = if kind == "PeerAuthentication" { "converted_peer_authentication_" } else { "" };
            names.push(format!("{namespace}/{converted}{name}"));
        }
        (documents.concat(), names)
    }

    fn selected(&self) -> bool {
        matches!(self.scope, Scope::Selector | Scope::DryRun)
    }

    fn allows(&self, client: &Client, port: u16) -> bool {
        let named = if port == DB { self.allowed } else { self.other };
        let node = match self.from {
            From::Both => true,
            From::Near => client.near,
            From::Far => !client.near,
        };
        named.contains(&client.account) && node
    }
}

/// A client of the database.
struct Client {
    account: &'static str,
    /// On the database's node.
    near: bool,
    pod: Pod,
}

impl Client {
    fn in_mesh(&self) -> bool {
        MESH.contains(&self.account)
    }
}

/// The database with two ports on the second node; each source once on each node.
fn guarded() -> Result<(Lab, Vec<Client>, [Server; 2])> {
    let mut builder = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::mesh("bank"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/db").node(1));
    let accounts = [("shop", "web"), ("shop", "cart"), ("bank", "teller"), ("legacy", "old")];
    for (namespace, account) in accounts {
        for (place, node) in [("far", 0), ("near", 1)] {
            builder = builder
                .pod(PodSpec::new(&format!("{namespace}/{account}-{place}")).account(account).node(node));
        }
    }
    let lab = builder.start()?;
    let mut clients = Vec::new();
    for (namespace, account) in accounts {
        for (place, near) in [("far", false), ("near", true)] {
            clients.push(Client { account, near, pod: lab.pod(&format!("{namespace}/{account}-{place}")) });
        }
    }
    let db = lab.pod("shop/db");
    let servers = [Server::start(&db, "shop/db", DB)?, Server::start(&db, "shop/db", OTHER)?];
    Ok((lab, clients, servers))
}

/// Asks for every client and port at once what the row says.
fn check(lab: &Lab, clients: &[Client], servers: &[Server; 2], row: &Row, family: Family) -> Result<()> {
    let db = lab.pod("shop/db");
    let ports = [DB, OTHER];
    let all = |allowed: bool, work: &(dyn Fn(&Client, SocketAddr) -> Result<()> + Sync)| -> Result<()> {
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for client in clients {
                for port in ports.into_iter().filter(|port| row.allows(client, *port) == allowed) {
                    let to = SocketAddr::new(db.ip(family), port);
                    threads.push(scope.spawn(move || {
                        work(client, to).with_context(|| format!("{} to {to}", client.pod.spec.key()))
                    }));
                }
            }
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    };
    let before = servers.each_ref().map(Server::accepted);
    all(false, &|client, to| match ask(&client.pod, to) {
        Ok(_) => bail!("gets an answer"),
        Err(_) => Ok(()),
    })?;
    let after = servers.each_ref().map(Server::accepted);
    ensure!(before == after, "the applications noticed those who were refused: {before:?}, {after:?}");
    all(true, &|client, to| {
        let node = lab.node_of(&db);
        ask(&client.pod, to).context("failed to get an answer")?;
        match (client.in_mesh(), client.near) {
            (true, true) if row.remembered => warm(node, &client.pod, to),
            (true, _) => {
                let path = ask_and_trace(node, &client.pod, to)?;
                ensure!(path == "tunnel", "went the path {path}");
                Ok(())
            }
            (false, _) => Ok(()),
        }
    })
}

#[test]
fn policy_decides_which_sources_are_allowed() -> Result<()> {
    let (lab, clients, servers) = guarded()?;
    let free = row("no policy", "", ALL);
    let mut table = Rows::new();
    table.row(free.name, || check(&lab, &clients, &servers, &free, Family::V4));
    for (number, row) in ROWS.iter().enumerate() {
        // Rows with addresses name those of IPv4.
        let family = if number % 2 == 0 || row.from != From::Both { Family::V4 } else { Family::V6 };
        table.row(&format!("{} {family:?}", row.name), || {
            // All have been let through once: what is refused now is refused although the kernel
            // had a cached verdict.
            check(&lab, &clients, &servers, &free, family).context("before the policy")?;
            let (yaml, names) = row.objects();
            lab.apply("policy", &yaml)?;
            for name in &names {
                policy_in_force(&lab, "shop/db", name, row.selected())?;
            }
            let checked = check(&lab, &clients, &servers, row, family);
            lab.remove("policy")?;
            no_policy_in_force(&lab, "shop/db")?;
            checked
        });
    }
    table.row("policy removed", || check(&lab, &clients, &servers, &free, Family::V4));
    table.finish();
    lab.finish()
}

const STRICT_DB: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {namespace: \
                         shop, name: strict}\nspec: {selector: {matchLabels: {app: db}}, mtls: {mode: \
                         STRICT}}\n";

/// One connection of each path, and what became of it.
struct Cut {
    path: &'static str,
    stream: TcpStream,
}

/// A policy that denies every source, for one namespace.
const DENY_ALL: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: \
                        shop, name: deny-all}\nspec: {action: DENY, rules: [{}]}\n";
/// Selecting a pod makes the kernel hand its plaintext connections to the daemon for a check.
const ALLOW_CHECKED: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: \
                             {namespace: shop, name: allow-all}\nspec: {selector: {matchLabels: {app: \
                             checked}}, action: ALLOW, rules: [{}]}\n";

/// From when the daemon has the policy.
const PROMISED: Duration = Duration::from_millis(500);

/// Every path's open connections are cut when a policy no longer allows them: how soon is measured and
/// printed.
#[test]
fn revoked_policy_closes_open_connections_on_every_path() -> Result<()> {
    const ROUNDS: usize = 5;
    let lab = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::mesh("bank"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("bank/far"))
        .pod(PodSpec::new("bank/near").node(1))
        .pod(PodSpec::new("legacy/old"))
        .pod(PodSpec::new("shop/open").node(1))
        .pod(PodSpec::new("shop/checked").node(1))
        .pod(PodSpec::new("bank/unconcerned").node(1))
        .start()?;
    lab.apply("allow-all", ALLOW_CHECKED)?;
    policy_in_force(&lab, "shop/checked", "shop/allow-all", true)?;
    let node = &lab.nodes[1];
    let mut servers = Vec::new();
    for pod in ["shop/open", "shop/checked", "bank/unconcerned"] {
        servers.push(Server::start(&lab.pod(pod), pod, DB)?);
    }
    let to = |pod: &str, family| SocketAddr::new(lab.pod(pod).ip(family), DB);
    let mut worst: Vec<(&str, Duration, Duration)> = Vec::new();
    for round in 0..ROUNDS {
        let family = FAMILIES[round % 2];
        warm(node, &lab.pod("bank/near"), to("shop/open", family))?;
        let mut cuts = Vec::new();
        for (path, client, server) in [
            ("tunnel", "bank/far", "shop/open"),
            ("direct", "bank/near", "shop/open"),
            ("plaintext", "legacy/old", "shop/checked"),
            ("native", "legacy/old", "shop/open"),
        ] {
            let stream = greeted(&lab.pod(client), to(server, family))?;
            listed(node, stream.local_addr()?.port(), path)?;
            cuts.push(Cut { path, stream });
        }
        let mut kept = [
            greeted(&lab.pod("bank/far"), to("bank/unconcerned", family))?,
            greeted(&lab.pod("bank/near"), to("bank/unconcerned", family))?,
            greeted(&lab.pod("legacy/old"), to("bank/unconcerned", family))?,
        ];
        let (written, unknown, ends) = revoke(&lab, cuts)?;
        for (path, end, at) in ends {
            ensure!(
                end.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
                "{path}: an open connection that is no longer allowed ends with {end:?}"
            );
            worst.push((path, at.saturating_duration_since(unknown), at - written));
        }
        for stream in &mut kept {
            stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])).context("not concerned")?;
        }
        lab.remove("deny-all")?;
        enforces(node, "nothing more", |dump| {
            ensure!(!policies(dump).contains(&"shop/deny-all"));
            Ok(())
        })?;
    }
    for path in ["tunnel", "direct", "plaintext", "native"] {
        let of = || worst.iter().filter(|(of, ..)| *of == path);
        let known = of().map(|(_, known, _)| *known).max().context("no figure")?;
        let written = of().map(|(.., written)| *written).max().context("no figure")?;
        println!(
            "{path}: cut at most {known:?} after the daemon had it, {written:?} after the file was written \
             ({ROUNDS} rounds)"
        );
        ensure!(known <= PROMISED, "{path}: cut {known:?} after the daemon had the policy");
    }
    lab.finish()
}

/// How a connection ended, and when.
type End = (&'static str, std::io::Result<usize>, Instant);

/// Writes the policy and waits for the connections' ends: when it was written, and when the daemon last did
/// not know it yet.
fn revoke(lab: &Lab, cuts: Vec<Cut>) -> Result<(Instant, Instant, Vec<End>)> {
    std::thread::scope(|scope| {
        let mut waiting = Vec::new();
        for mut cut in cuts {
            waiting.push(scope.spawn(move || {
                let end = cut.stream.read(&mut [0; 16]);
                (cut.path, end, Instant::now())
            }));
        }
        let written = Instant::now();
        lab.apply("deny-all", DENY_ALL)?;
        // Asked for before the answer was made: the daemon cannot have had it any earlier than this.
        let mut unknown = written;
        eventually("the daemon has the policy", || {
            let asked = Instant::now();
            let known = policies(&lab.nodes[1].config_dump()?).contains(&"shop/deny-all");
            if !known {
                unknown = asked;
            }
            ensure!(known);
            Ok(())
        })?;
        let ends = waiting
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        Ok((written, unknown, ends.collect()))
    })
}

/// Waits until an open connection is listed with its path.
fn listed(node: &ambit_harness::Node, port: u16, path: &str) -> Result<()> {
    eventually(&format!("/connections has port {port} as {path}"), || {
        let open = node.connections()?;
        let ours = |view: &&serde_json::Value| {
            let source = view["source"]["address"].as_str();
            view["direction"] == "inbound"
                && source.is_some_and(|source| source.ends_with(&format!(":{port}")))
        };
        let view = open.as_array().and_then(|all| all.iter().find(ours).cloned()).context("not listed")?;
        ensure!(view["path"] == path, "listed as {}", view["path"]);
        Ok(())
    })
}

/// Whether all of these clients get, or do not get, an answer.
fn expect(lab: &Lab, clients: &[&str], allowed: bool) -> Result<()> {
    let db = SocketAddr::new(lab.pod("shop/db").v4.into(), DB);
    for client in clients {
        match (ask(&lab.pod(client), db), allowed) {
            (Ok(_), true) | (Err(_), false) => {}
            (Ok(_), false) => bail!("{client} gets an answer"),
            (Err(error), true) => {
                return Err(error).with_context(|| format!("failed to get an answer for {client}"));
            }
        }
    }
    Ok(())
}

#[test]
fn kernel_refusals_are_counted() -> Result<()> {
    let (lab, _servers) = shop()?;
    let before = lab.nodes[1].metrics()?.sum("ambit_kernel_refusals_total", &[]);
    lab.apply("policy", STRICT_DB)?;
    policy_in_force(&lab, "shop/db", "shop/converted_peer_authentication_strict", true)?;
    expect(&lab, &["legacy/old", "legacy/far"], false)?;
    eventually("both are counted", || {
        let refused = lab.nodes[1].metrics()?.sum("ambit_kernel_refusals_total", &[]) - before;
        ensure!((refused - 2.0).abs() < 0.5, "{refused} refusals");
        Ok(())
    })?;
    lab.finish()
}

const DENY_WEB: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: \
                        shop, name: deny-web}\nspec: {selector: {matchLabels: {app: db}}, action: DENY, \
                        rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}\n";

#[test]
fn new_policy_closes_open_connections() -> Result<()> {
    let (lab, _servers) = shop()?;
    let web = lab.pod("shop/web");
    let db = SocketAddr::new(lab.pod("shop/db").v4.into(), DB);
    let mut refused = connect(&web, db)?;
    let mut kept = connect(&lab.pod("bank/teller"), db)?;
    let mut greeting = [0; 7];
    refused.read_exact(&mut greeting)?;
    kept.read_exact(&mut greeting)?;
    lab.apply("policy", DENY_WEB)?;
    let mut rest = Vec::new();
    let end = refused.read_to_end(&mut rest);
    assert!(
        end.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
        "an open connection that is no longer allowed is reset: {end:?}"
    );
    // The other client's connection goes on.
    kept.write_all(b"still here")?;
    kept.shutdown(Shutdown::Write)?;
    rest.clear();
    kept.read_to_end(&mut rest)?;
    assert!(rest.ends_with(b"still here"), "{}", String::from_utf8_lossy(&rest));
    lab.finish()
}

#[test]
fn only_probes_pass_under_a_deny_policy() -> Result<()> {
    let (lab, _servers) = shop()?;
    lab.apply("policy", STRICT_DB)?;
    policy_in_force(&lab, "shop/db", "shop/converted_peer_authentication_strict", true)?;
    expect(&lab, &["legacy/old"], false)?;
    let (db, node) = (lab.pod("shop/db"), &lab.nodes[1].place);
    let mut table = Rows::new();
    for family in FAMILIES {
        table.row(&format!("its own node, the probe's port {family:?}"), || {
            let answer = ask(node, SocketAddr::new(db.ip(family), PROBE))?;
            let gateway = IpAddr::from(network::gateway_v4(1));
            ensure!(family == Family::V6 || answer.saw == gateway, "the pod saw {}", answer.saw);
            Ok(())
        });
        let refused: [(&str, &Place, u16); 3] = [
            ("its own node, another port", node, DB),
            ("another node, the probe's port", &lab.nodes[0].place, PROBE),
            ("a pod outside the mesh, the probe's port", &lab.pod("legacy/far").place, PROBE),
        ];
        for (name, from, port) in refused {
            table.row(&format!("{name} {family:?}"), || {
                match ask(from, SocketAddr::new(db.ip(family), port)) {
                    Ok(answer) => bail!("{} answers", answer.server),
                    Err(_) => Ok(()),
                }
            });
        }
    }
    table.finish();
    lab.finish()
}
