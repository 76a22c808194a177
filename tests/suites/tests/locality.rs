//! Which endpoints may serve a connection: near before far, and ready before not ready.

use ambit_harness::{Lab, NamespaceSpec};
use ambit_suites::Rows;
use ambit_suites::endpoints::{
    LOOK, Open, at, draw_and_trace, no_endpoint_serves, pod, serve, served_by, service, set_ready, warm_all,
};
use ambit_suites::shop::FAMILIES;
use anyhow::{Context, Result, ensure};

/// Two zones of a region: the first two nodes, and the third.
fn zones() -> String {
    let node = |(index, zone)| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node{index}\n  labels:\n    \
             topology.kubernetes.io/region: north\n    topology.kubernetes.io/zone: {zone}\n"
        )
    };
    [(0, "one"), (1, "one"), (2, "two")].map(node).concat()
}

/// A client, a service, and the endpoints that may serve it; none: the connection is refused.
type Near = (&'static str, &'static str, &'static [&'static str]);

const ALL_READY: &[Near] = &[
    ("web", "any", &["here", "zone", "away"]),
    ("web", "local", &["here"]),
    ("web", "same-node", &["here"]),
    ("web", "same-zone", &["here", "zone"]),
    ("web", "close", &["here", "zone"]),
    ("far", "any", &["here", "zone", "away"]),
    ("far", "local", &["away"]),
    ("far", "same-node", &["away"]),
    ("far", "same-zone", &["away"]),
    // On the second node, and of the second zone by its own word.
    ("guest", "local", &["zone"]),
    ("guest", "same-node", &["away"]),
    ("guest", "same-zone", &["away"]),
];

const HERE_UNREADY: &[Near] = &[
    ("web", "any", &["zone", "away"]),
    ("web", "local", &[]),
    ("web", "same-node", &["zone"]),
    ("web", "same-zone", &["zone"]),
    ("web", "close", &["zone"]),
    ("far", "local", &["away"]),
    ("guest", "local", &["zone"]),
];

const ZONE_UNREADY: &[Near] = &[
    ("web", "any", &["away"]),
    ("web", "local", &[]),
    ("web", "same-node", &["away"]),
    ("web", "same-zone", &["away"]),
    ("far", "same-zone", &["away"]),
    ("guest", "local", &[]),
];

const AWAY_UNREADY: &[Near] = &[
    ("far", "any", &["here", "zone"]),
    ("far", "local", &[]),
    ("far", "same-node", &["here", "zone"]),
    ("far", "same-zone", &["here", "zone"]),
    ("guest", "same-zone", &["here", "zone"]),
    ("web", "same-zone", &["here", "zone"]),
];

#[test]
fn near_endpoints_are_preferred() -> Result<()> {
    let lab = Lab::builder()
        .nodes(3)
        .object("nodes", &zones())
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(pod("web", 0))
        .pod(pod("guest", 1).label("topology.kubernetes.io/zone", "two"))
        .pod(pod("far", 2))
        .pod(pod("here", 0).label("cart", "yes"))
        .pod(pod("zone", 1).label("cart", "yes"))
        .pod(pod("away", 2).label("cart", "yes"))
        .service(service("any", "cart"))
        .service(service("local", "cart").field("internalTrafficPolicy", "Local"))
        .service(service("same-node", "cart").field("trafficDistribution", "PreferSameNode"))
        .service(service("same-zone", "cart").field("trafficDistribution", "PreferSameZone"))
        .service(service("close", "cart").field("trafficDistribution", "PreferClose"))
        .start()?;
    let _servers = serve(&lab, &["here", "zone", "away"])?;
    let mut table = Rows::new();
    near(&lab, &mut table, "all ready", ALL_READY);
    // The kernel chooses by the same rules.
    for (service, local) in [("any", "here"), ("local", "here"), ("same-node", "here"), ("same-zone", "here")]
    {
        table.row(&format!("in the kernel, {service}"), || {
            let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
            FAMILIES.iter().try_for_each(|family| {
                let to = at(&lab, service, *family);
                warm_all(&lab, &web, *family, &[local])?;
                let counts = draw_and_trace(node, &web, to, LOOK, &[local])?;
                let wanted =
                    ALL_READY.iter().find(|row| (row.0, row.1) == ("web", service)).context("a row")?;
                ensure!(counts.keys().all(|name| wanted.2.contains(&name.as_str())), "{counts:?}");
                Ok(())
            })
        });
    }
    table.row("here is not ready", || set_ready(&lab, "here", false));
    near(&lab, &mut table, "here is not ready", HERE_UNREADY);
    table.row("nor is the zone's", || set_ready(&lab, "zone", false));
    near(&lab, &mut table, "no endpoint in the zone is ready", ZONE_UNREADY);
    table.row("both are back", || set_ready(&lab, "here", true).and_then(|()| set_ready(&lab, "zone", true)));
    near(&lab, &mut table, "all ready again", ALL_READY);
    table.row("away is not ready", || set_ready(&lab, "away", false));
    near(&lab, &mut table, "no endpoint away is ready", AWAY_UNREADY);
    table.finish();
    lab.finish()
}

fn near(lab: &Lab, table: &mut Rows, state: &str, rows: &[Near]) {
    for (index, (client, service, expected)) in rows.iter().enumerate() {
        // In turn, so that each state is seen over both families.
        let family = FAMILIES[index % 2];
        table.row(&format!("{state}: {client} asks {service} over {family:?}"), || {
            let (place, to) = (lab.pod(&format!("shop/{client}")), at(lab, service, family));
            match expected {
                [] => no_endpoint_serves(lab.node_of(&place), &place, to),
                _ => served_by(&place, to, expected),
            }
        });
    }
}

#[test]
fn unready_endpoint_gets_no_new_connections_and_keeps_open_ones() -> Result<()> {
    let lab = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(pod("web", 0))
        .pod(pod("near", 0).label("cart", "yes"))
        .pod(pod("far", 1).label("cart", "yes"))
        .service(service("cart", "cart"))
        .service(service("eager", "cart").field("publishNotReadyAddresses", "true"))
        .start()?;
    let _servers = serve(&lab, &["near", "far"])?;
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    let mut table = Rows::new();
    for family in FAMILIES {
        table.row(&format!("{family:?}"), || {
            let to = at(&lab, "cart", family);
            warm_all(&lab, &web, family, &["near"])?;
            let mut open = Vec::<Open>::new();
            while !["near", "far"].iter().all(|name| open.iter().any(|open| open.name == *name)) {
                ensure!(open.len() < LOOK, "one of them gets nothing");
                open.push(Open::new(&web, to)?);
            }
            let mut all_live = || open.iter_mut().try_for_each(Open::echo);
            all_live()?;

            set_ready(&lab, "near", false)?;
            served_by(&web, to, &["far"])?;
            all_live().context("near is not ready")?;

            set_ready(&lab, "far", false)?;
            no_endpoint_serves(node, &web, to)?;
            all_live().context("none is ready")?;
            served_by(&web, at(&lab, "eager", family), &["near", "far"])
                .context("not ready and published")?;

            set_ready(&lab, "near", true)?;
            served_by(&web, to, &["near"])?;
            set_ready(&lab, "far", true)?;
            served_by(&web, to, &["near", "far"])?;
            all_live().context("all are ready again")
        });
    }
    table.finish();
    lab.finish()
}
