//! Which endpoint serves a connection: the shares of the kernel's choice and the daemon's, and session
//! affinity.

use std::collections::{BTreeMap, BTreeSet};

use ambit_harness::{Family, Lab, NamespaceSpec, Node};
use ambit_suites::Rows;
use ambit_suites::endpoints::{
    at, draw, draw_and_trace, everywhere, pod, serve, service, set_ready, warm_all, workload,
};
use ambit_suites::paths::warm;
use ambit_suites::shares::{fit, homogeneity};
use ambit_suites::shop::FAMILIES;
use anyhow::{Result, bail, ensure};

/// Connections of each choice in the test of shares.
const DRAWS: usize = 1200;

/// A service whose endpoints must get their shares.
struct Shares {
    name: &'static str,
    service: &'static str,
    family: Family,
    weights: &'static [(&'static str, u32)],
    /// Those on the client's node.
    local: &'static [&'static str],
}

const SHARES: [Shares; 4] = [
    Shares {
        name: "alike, IPv4",
        service: "even",
        family: Family::V4,
        weights: EVEN,
        local: &["a", "b", "c"],
    },
    Shares {
        name: "alike, IPv6",
        service: "even",
        family: Family::V6,
        weights: EVEN,
        local: &["a", "b", "c"],
    },
    Shares {
        name: "by weight",
        service: "weighted",
        family: Family::V4,
        weights: &[("a", 1), ("b", 3), ("c", 6)],
        local: &["a", "b", "c"],
    },
    Shares {
        name: "on both nodes, by weight, IPv6",
        service: "mixed",
        family: Family::V6,
        weights: &[("a", 1), ("b", 1), ("d", 1), ("e", 3)],
        local: &["a", "b"],
    },
];

const EVEN: &[(&str, u32)] = &[("a", 1), ("b", 1), ("c", 1)];

/// Workload entries give pods weights.
fn weights(lab: &Lab) -> String {
    let entry = |(name, label, pod, weight, family)| {
        let address = lab.pod(&format!("shop/{pod}")).ip(family);
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  namespace: shop\n  \
             name: {name}\nspec:\n  address: \"{address}\"\n  weight: {weight}\n  labels: {{{label}: \
             \"yes\"}}\n"
        )
    };
    let entries = [
        ("b3", "weighted", "b", 3, Family::V4),
        ("c6", "weighted", "c", 6, Family::V4),
        ("e3", "mixed", "e", 3, Family::V6),
    ];
    entries.map(entry).concat()
}

#[test]
fn kernel_and_daemon_balance_by_equal_shares() -> Result<()> {
    // The third node has no endpoint, so that its kernel has nothing to choose from.
    let lab = Lab::builder()
        .nodes(3)
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(pod("web", 0))
        .pod(pod("tunnelled", 0).label("ambit.dev/direct", "disabled"))
        .pod(pod("a", 0).label("even", "yes").label("weighted", "yes").label("mixed", "yes"))
        .pod(pod("b", 0).label("even", "yes").label("mixed", "yes"))
        .pod(pod("c", 0).label("even", "yes"))
        .pod(pod("d", 1).label("mixed", "yes"))
        .pod(pod("e", 1))
        .pod(pod("far", 2))
        .service(service("even", "even"))
        .service(service("weighted", "weighted"))
        .service(service("mixed", "mixed"))
        .start()?;
    let _servers = serve(&lab, &["a", "b", "c", "d", "e"])?;
    lab.apply("weights", &weights(&lab))?;
    everywhere(&lab, "the weights", |dump| {
        let names = ["b3", "c6", "e3"];
        let uid = |name| format!("Kubernetes/networking.istio.io/WorkloadEntry/shop/{name}");
        ensure!(names.iter().all(|name| workload(dump, &uid(name)).is_some()), "not all are known");
        Ok(())
    })?;
    let tables = |node: &Node| anyhow::Ok(node.map_entries()?.get("SERVICES").copied().unwrap_or_default());
    ensure!(tables(&lab.nodes[2])? == 0, "the third node's kernel chooses too");
    ensure!(
        tables(&lab.nodes[0])? == 6,
        "the first node's kernel does not choose: {:?}",
        lab.nodes[0].map_entries()?
    );

    let mut table = Rows::new();
    for case in &SHARES {
        table.row(case.name, || agree(&lab, case));
    }
    table.finish();
    lab.finish()
}

/// What chooses: the kernel; the kernel where the direct path is switched off, so that the daemon gets the
/// choice to carry it out; the daemon.
const CHOOSERS: [&str; 3] = ["kernel", "kernel, in tunnels", "daemon"];

/// By chance a statistic is too great once in a thousand samples. Then there are second samples; wrong shares
/// are wrong there too.
fn agree(lab: &Lab, case: &Shares) -> Result<()> {
    let [web, tunnelled, far] = ["shop/web", "shop/tunnelled", "shop/far"].map(|pod| lab.pod(pod));
    let to = at(lab, case.service, case.family);
    warm_all(lab, &web, case.family, case.local)?;
    let mut statistics = String::new();
    for _ in 0..2 {
        let samples = [
            draw_and_trace(&lab.nodes[0], &web, to, DRAWS, case.local)?,
            draw_and_trace(&lab.nodes[0], &tunnelled, to, DRAWS, &[])?,
            draw_and_trace(&lab.nodes[2], &far, to, DRAWS, &[])?,
        ];
        let mut all = vec![("kernel against daemon", homogeneity(&samples[0], &samples[2])?)];
        for (who, sample) in CHOOSERS.into_iter().zip(&samples) {
            println!("{}: {who}: {sample:?}", case.name);
            all.push((who, fit(sample, case.weights)?));
        }
        statistics = all.iter().map(|(who, chi)| format!("{who} {chi}")).collect::<Vec<_>>().join("; ");
        println!("{}: chi-square: {statistics}", case.name);
        if case.service == "weighted" {
            let even = fit(&samples[0], EVEN)?;
            ensure!(!even.agrees(), "the test does not tell weights from none: {even}");
        }
        if all.iter().all(|(_, chi)| chi.agrees()) {
            return Ok(());
        }
    }
    bail!("twice in a row: {statistics}")
}

/// Clients of the service with affinity, on both nodes in turn.
const CLIENTS: usize = 10;

/// Which endpoint each client has: by connections over both families, which must all come to the same.
fn assignment(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for client in (0..CLIENTS).map(|number| format!("client-{number}")) {
        let place = lab.pod(&format!("shop/{client}"));
        let mut servers = BTreeSet::new();
        for family in FAMILIES {
            servers.extend(draw(&place, at(lab, "cart", family), 5)?.into_keys());
        }
        ensure!(servers.len() == 1, "{client} has {servers:?}");
        found.extend(servers.pop_first().map(|server| (client, server)));
    }
    Ok(found)
}

#[test]
fn client_ip_affinity_keeps_the_endpoint() -> Result<()> {
    let mut lab = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(pod("cart-1", 0).label("cart", "yes"))
        .pod(pod("cart-2", 0).label("cart", "yes"))
        .pod(pod("cart-3", 1).label("cart", "yes"))
        .service(service("cart", "cart").field("sessionAffinity", "ClientIP"));
    for number in 0..CLIENTS {
        lab = lab.pod(pod(&format!("client-{number}"), number % 2));
    }
    let lab = lab.start()?;
    let _servers = serve(&lab, &["cart-1", "cart-2", "cart-3"])?;
    let mut table = Rows::new();
    let first = assignment(&lab)?;
    println!("{first:?}");
    let clients_of = |server: &str| -> Vec<String> {
        first.iter().filter(|(_, own)| *own == server).map(|(client, _)| client.clone()).collect()
    };
    table.row("clients spread", || {
        let used: BTreeSet<&String> = first.values().collect();
        ensure!(used.len() == 3, "{first:?}");
        Ok(())
    });
    table.row("the kernel keeps to it", || by_kernel_too(&lab, &first));
    table.row("over a restart of the daemons", || {
        lab.nodes.iter().try_for_each(Node::restart)?;
        let now = assignment(&lab)?;
        ensure!(now == first, "{now:?}");
        by_kernel_too(&lab, &first)
    });
    table.row("an endpoint that is not ready loses its clients, no other does; it gets them back", || {
        set_ready(&lab, "cart-1", false)?;
        moved(&lab, &first, &clients_of("cart-1"))?;
        set_ready(&lab, "cart-1", true)?;
        let now = assignment(&lab)?;
        ensure!(now == first, "{now:?}");
        by_kernel_too(&lab, &first)
    });
    table.row("one that goes away too", || {
        let spec = lab.pod("shop/cart-3").spec;
        let known = |wanted| {
            everywhere(&lab, &format!("cart-3 exists: {wanted}"), |dump| {
                ensure!(workload(dump, &spec.uid()).is_some() == wanted, "not yet");
                Ok(())
            })
        };
        lab.remove("pod-shop-cart-3")?;
        known(false)?;
        moved(&lab, &first, &clients_of("cart-3"))?;
        lab.update_pod(spec.clone())?;
        known(true)?;
        let now = assignment(&lab)?;
        ensure!(now == first, "{now:?}");
        Ok(())
    });
    table.finish();
    lab.finish()
}

/// Requires that of all clients these and only these have another endpoint than at first.
fn moved(lab: &Lab, first: &BTreeMap<String, String>, clients: &[String]) -> Result<()> {
    let now = assignment(lab)?;
    let moved: Vec<String> = first.keys().filter(|client| first[*client] != now[*client]).cloned().collect();
    ensure!(!moved.is_empty() && moved == clients, "{moved:?} moved instead of {clients:?}: {now:?}");
    Ok(())
}

/// Requires that those whose endpoint is on their own node get there directly, and still to the same.
fn by_kernel_too(lab: &Lab, first: &BTreeMap<String, String>) -> Result<()> {
    let mut direct = 0;
    for (client, server) in first {
        let (place, endpoint) = (lab.pod(&format!("shop/{client}")), lab.pod(&format!("shop/{server}")));
        if place.spec.node != endpoint.spec.node {
            continue;
        }
        let node = lab.node_of(&place);
        for family in FAMILIES {
            let to = at(lab, "cart", family);
            warm(node, &place, to)?;
            let counts = draw_and_trace(node, &place, to, 10, &[server])?;
            ensure!(counts.len() == 1 && counts.contains_key(server), "{client}: {counts:?}");
            direct += 1;
        }
    }
    ensure!(direct > 0, "no client is on its endpoint's node");
    Ok(())
}
