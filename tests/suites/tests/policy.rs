//! Who may talk to whom: AuthorizationPolicy, PeerAuthentication, probes, and what happens to open connections.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr};

use ambit_harness::{Family, Lab, Place, eventually, network};
use ambit_suites::shop::{DB, FAMILIES, PROBE, shop};
use ambit_suites::{Rows, ask, connect};
use anyhow::{Context, Result, bail, ensure};

/// A policy, and who may then talk to the database on which port.
struct PolicyRow {
    name: &'static str,
    /// `spec` of an AuthorizationPolicy in `shop` that selects the database, or a whole object.
    spec: &'static str,
    allowed: &'static [&'static str],
    denied: &'static [&'static str],
}

const POLICIES: &[PolicyRow] = &[
    PolicyRow {
        name: "allow-principal",
        spec: "action: ALLOW\n  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]",
        allowed: &["shop/web"],
        denied: &["shop/cart-1", "shop/cart-2", "bank/teller", "legacy/old"],
    },
    PolicyRow {
        name: "allow-namespace",
        spec: "action: ALLOW\n  rules: [{from: [{source: {namespaces: [bank]}}]}]",
        allowed: &["bank/teller"],
        denied: &["shop/web", "legacy/old"],
    },
    PolicyRow {
        name: "allow-service-account",
        spec: "action: ALLOW\n  rules: [{from: [{source: {serviceAccounts: [shop/cart]}}]}]",
        allowed: &["shop/cart-1", "shop/cart-2"],
        denied: &["shop/web", "bank/teller", "legacy/old"],
    },
    PolicyRow {
        name: "allow-another-port-only",
        spec: "action: ALLOW\n  rules: [{to: [{operation: {ports: [\"1\"]}}]}]",
        allowed: &[],
        denied: &["shop/web", "bank/teller", "legacy/old"],
    },
    PolicyRow {
        name: "allow-port",
        spec: "action: ALLOW\n  rules: [{to: [{operation: {ports: [\"5432\"]}}]}]",
        allowed: &["shop/web", "bank/teller", "legacy/old"],
        denied: &[],
    },
    PolicyRow {
        name: "allow-address",
        spec: "action: ALLOW\n  rules: [{from: [{source: {ipBlocks: [LEGACY]}}]}]",
        allowed: &["legacy/old"],
        denied: &["shop/web", "bank/teller"],
    },
    PolicyRow {
        name: "allow-nothing",
        spec: "action: ALLOW",
        allowed: &[],
        denied: &["shop/web", "legacy/old"],
    },
    PolicyRow {
        name: "deny-principal",
        spec: "action: DENY\n  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]",
        allowed: &["shop/cart-1", "bank/teller", "legacy/old"],
        denied: &["shop/web"],
    },
    PolicyRow {
        name: "deny-other-namespaces",
        spec: "action: DENY\n  rules: [{from: [{source: {notNamespaces: [shop]}}]}]",
        allowed: &["shop/web", "shop/cart-2"],
        denied: &["bank/teller"],
    },
    PolicyRow {
        name: "http-rule-never-allows",
        spec: "action: ALLOW\n  rules: [{to: [{operation: {methods: [GET]}}]}]",
        allowed: &[],
        denied: &["shop/web", "legacy/old"],
    },
    PolicyRow {
        name: "http-rule-denies-the-rest",
        spec: "action: DENY\n  rules: [{from: [{source: {namespaces: [bank]}}], to: [{operation: {methods: [GET]}}]}]",
        allowed: &["shop/web"],
        denied: &["bank/teller"],
    },
    PolicyRow {
        name: "strict",
        spec: "PEER mtls: {mode: STRICT}",
        allowed: &["shop/web", "bank/teller"],
        denied: &["legacy/old", "legacy/far"],
    },
    PolicyRow {
        name: "strict-but-not-this-port",
        spec: "PEER mtls: {mode: STRICT}\n  portLevelMtls: {\"5432\": {mode: PERMISSIVE}}",
        allowed: &["shop/web", "legacy/old"],
        denied: &[],
    },
    PolicyRow {
        name: "permissive-but-not-this-port",
        spec: "PEER mtls: {mode: PERMISSIVE}\n  portLevelMtls: {\"5432\": {mode: STRICT}}",
        allowed: &["shop/web"],
        denied: &["legacy/old", "legacy/far"],
    },
];

impl PolicyRow {
    fn yaml(&self, lab: &Lab) -> String {
        let spec = self.spec.replace("LEGACY", &lab.pod("legacy/old").v4.to_string());
        let (kind, spec) = match spec.strip_prefix("PEER ") {
            Some(rest) => ("PeerAuthentication", rest.to_owned()),
            None => ("AuthorizationPolicy", spec),
        };
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata:\n  namespace: shop\n  name: {}\n\
             spec:\n  selector: {{matchLabels: {{app: db}}}}\n  {spec}\n",
            self.name
        )
    }
}

/// Whether all of these clients get, or do not get, an answer; over every family that the row allows.
fn expect(lab: &Lab, clients: &[&str], allowed: bool) -> Result<()> {
    let db = SocketAddr::new(lab.pod("shop/db").v4.into(), DB);
    for client in clients {
        match (ask(&lab.pod(client), db), allowed) {
            (Ok(_), true) | (Err(_), false) => {}
            (Ok(_), false) => bail!("{client} gets an answer"),
            (Err(error), true) => return Err(error).with_context(|| format!("{client} gets no answer")),
        }
    }
    Ok(())
}

#[test]
fn policies_decide_who_may_talk() -> Result<()> {
    let (lab, _servers) = shop()?;
    let everybody = ["shop/web", "shop/cart-1", "shop/cart-2", "bank/teller", "legacy/old", "legacy/far"];
    let mut table = Rows::new();
    table.row("no policy", || eventually("everybody gets an answer", || expect(&lab, &everybody, true)));
    for row in POLICIES {
        let refused_before = lab.nodes[1].metrics()?.sum("ambit_kernel_refusals_total", &[]);
        table.row(row.name, || {
            lab.apply("policy", &row.yaml(&lab))?;
            eventually("who may and who may not is as the policy says", || {
                expect(&lab, row.denied, false)?;
                expect(&lab, row.allowed, true)
            })?;
            if row.name != "strict" {
                return Ok(());
            }
            eventually("what the kernel refuses on its own is counted too", || {
                let refused =
                    lab.nodes[1].metrics()?.sum("ambit_kernel_refusals_total", &[]) - refused_before;
                ensure!(refused >= 1.0, "{refused} refusals");
                Ok(())
            })
        });
    }
    table.row("policy removed", || {
        lab.remove("policy")?;
        eventually("everybody gets an answer", || expect(&lab, &everybody, true))
    });
    table.row("a dry run refuses nobody", || {
        let dry = POLICIES[6]
            .yaml(&lab)
            .replace("  name: allow-nothing", "  name: dry\n  annotations: {istio.io/dry-run: \"true\"}");
        ensure!(dry.contains("dry-run"));
        lab.apply("policy", &dry)?;
        eventually("the daemon knows the policy", || {
            ensure!(lab.nodes[1].config_dump()?.to_string().contains("dry"));
            Ok(())
        })?;
        expect(&lab, &everybody, true)
    });
    table.finish();
    lab.finish()
}

#[test]
fn a_new_policy_closes_open_connections() -> Result<()> {
    let (lab, _servers) = shop()?;
    let web = lab.pod("shop/web");
    let db = SocketAddr::new(lab.pod("shop/db").v4.into(), DB);
    let mut refused = connect(&web, db)?;
    let mut kept = connect(&lab.pod("bank/teller"), db)?;
    let mut greeting = [0; 7];
    refused.read_exact(&mut greeting)?;
    kept.read_exact(&mut greeting)?;
    lab.apply("policy", &POLICIES[7].yaml(&lab))?;
    let mut rest = Vec::new();
    let end = refused.read_to_end(&mut rest);
    assert!(
        end.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
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
fn probes_pass_under_any_policy_and_nothing_else_does() -> Result<()> {
    let (lab, _servers) = shop()?;
    let strict = POLICIES.iter().find(|row| row.name == "strict").expect("it is above");
    lab.apply("policy", &strict.yaml(&lab))?;
    eventually("legacy clients are refused", || expect(&lab, &["legacy/old"], false))?;
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
