//! Endpoints that cannot be reached are ejected: other endpoints serve, and the ejected come back.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ambit_harness::{Family, Lab, NamespaceSpec, Node, Place, ServiceSpec, eventually};
use ambit_suites::endpoints::{
    APP, FRONT, Open, at, draw, failure, pod, serve, served_by, service, set_ready, warm_all,
};
use ambit_suites::paths::{no_policy_in_force, policy_in_force};
use ambit_suites::shop::FAMILIES;
use ambit_suites::{Rows, Server, ask};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

/// How long the daemon may take to make a connection, by default; no connection here takes longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The shop's cart on three nodes, one endpoint on the client's own.
fn fragile(ejection: &str) -> Result<(Lab, BTreeMap<&'static str, Server>)> {
    let lab = Lab::builder()
        .nodes(3)
        .daemon_config(&format!("ejection: {{{ejection}}}"))
        .namespace(NamespaceSpec::mesh("shop"))
        .pod(pod("web", 0))
        .pod(pod("near", 0).label("cart", "yes"))
        .pod(pod("far", 1).label("cart", "yes"))
        .pod(pod("away", 2).label("cart", "yes"))
        .pod(pod("alone", 1))
        .service(service("cart", "cart"))
        .service(ServiceSpec::new("shop/alone").port(FRONT, APP))
        .start()?;
    let names = ["near", "far", "away"];
    let servers = names.into_iter().zip(serve(&lab, &names)?).collect();
    Ok((lab, servers))
}

/// The ejected endpoints, as the client's daemon shows them.
fn ejected(node: &Node) -> Result<Vec<String>> {
    let dump = node.config_dump()?;
    let all = dump["ejected"].as_array().context("a list of the ejected")?;
    let name = |entry: &Value| {
        ensure!(entry["service"] == "shop/cart.shop.svc.cluster.local" && entry["port"] == FRONT, "{entry}");
        ensure!(entry["seconds_left"].is_f64(), "{entry}");
        Ok(entry["endpoint"].as_str().context("a name")?.rsplit('/').next().unwrap_or_default().to_owned())
    };
    all.iter().map(name).collect()
}

/// Repeats until there is something, and fails at once where something fails.
fn until<T>(what: &str, mut step: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    eventually(what, || match step() {
        Ok(Some(found)) => Ok(Ok(found)),
        Ok(None) => bail!("not yet"),
        Err(error) => Ok(Err(error)),
    })?
}

/// How many ejections the client's daemon has counted, and how many endpoints are ejected now.
fn ejections(node: &Node) -> Result<[f64; 2]> {
    let metrics = node.metrics()?;
    Ok(["ambit_endpoint_ejections_total", "ambit_endpoints_ejected"].map(|name| metrics.sum(name, &[])))
}

/// Connects until an endpoint is ejected. Every connection must be answered, by another, in time; several at
/// once, since some have to wait.
fn until_ejected(lab: &Lab, to: SocketAddr, name: &str) -> Result<()> {
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    let mark = node.ztunnel.log_mark();
    let [before, _] = ejections(node)?;
    let mut slowest = Duration::ZERO;
    until(&format!("{name} is ejected"), || {
        for (server, took) in at_once(&web, to)? {
            ensure!(server != name && took < CONNECT_TIMEOUT, "{server} answered after {took:?}");
            slowest = slowest.max(took);
        }
        Ok(says(node, mark, "endpoint ejected", name).then_some(()))
    })?;
    println!("{name} is ejected; the slowest connection took {slowest:.1?}");
    ensure!(ejections(node)?[0] > before, "it is not counted");
    Ok(())
}

/// Waits until the kernel leaves every choice to the daemon.
fn no_choice_in_the_kernel(node: &Node) -> Result<()> {
    eventually("the kernel has no table", || {
        let found = node.map_entries()?.get("SERVICES").copied();
        ensure!(found == Some(0), "{found:?}");
        Ok(())
    })
}

/// Several connections at once: which server answered, and when.
fn at_once(client: &Place, to: SocketAddr) -> Result<Vec<(String, Duration)>> {
    let ask = || {
        let began = Instant::now();
        anyhow::Ok((Open::new(client, to)?.name, began.elapsed()))
    };
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
        let answers = asking.into_iter().map(std::thread::ScopedJoinHandle::join);
        answers.map(|one| one.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Whether a daemon's log has said this of an endpoint since a mark.
fn says(node: &Node, mark: u64, what: &str, name: &str) -> bool {
    let endpoint = format!("Pod/shop/{name}\"");
    node.ztunnel.log_since(mark).lines().any(|line| line.contains(what) && line.contains(&endpoint))
}

/// Connects until an endpoint serves again.
fn until_back(lab: &Lab, to: SocketAddr, name: &str) -> Result<()> {
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    until(&format!("{name} serves again"), || Ok(draw(&web, to, 10)?.contains_key(name).then_some(())))?;
    eventually("no endpoint is ejected", || {
        let (all, [_, now]) = (ejected(node)?, ejections(node)?);
        ensure!(all.is_empty() && now.abs() < f64::EPSILON, "{all:?}, {now}");
        Ok(())
    })
}

#[test]
fn unreachable_endpoint_is_ejected_and_returns() -> Result<()> {
    let (lab, mut servers) = fragile("consecutive_failures: 2, first_seconds: 2, longest_seconds: 4")?;
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    let mut table = Rows::new();
    for family in FAMILIES {
        let to = at(&lab, "cart", family);
        table.row(&format!("all serve, {family:?}"), || {
            warm_all(&lab, &web, family, &["near"])?;
            served_by(&web, to, &["near", "far", "away"])
        });
        table.row(&format!("an application that does not listen, {family:?}"), || {
            servers.remove("far");
            until_ejected(&lab, to, "far")?;
            servers.extend(serve(&lab, &["far"])?.pop().map(|server| ("far", server)));
            until_back(&lab, to, "far")
        });
        table.row(&format!("a node that swallows all packets, {family:?}"), || {
            let route = format!("blackhole {}", lab.pod("shop/far").ip(family));
            lab.nodes[1].place.netns.ip(&format!("route add {route}\n"))?;
            let lost = until_ejected(&lab, to, "far");
            lab.nodes[1].place.netns.ip(&format!("route del {route}\n"))?;
            lost?;
            until_back(&lab, to, "far")
        });
    }
    let to = at(&lab, "cart", Family::V4);
    table.row(
        "an application on the client's own node that does not listen, before anything was direct",
        || {
            lab.update_pod(lab.pod("shop/near").spec.label("ambit.dev/direct", "disabled"))?;
            no_choice_in_the_kernel(node)?;
            servers.remove("near");
            until_ejected(&lab, to, "near")?;
            servers.extend(serve(&lab, &["near"])?.pop().map(|server| ("near", server)));
            until_back(&lab, to, "near")?;
            lab.update_pod(lab.pod("shop/near").spec.label("ambit.dev/direct", "enabled"))?;
            warm_all(&lab, &web, Family::V4, &["near"])
        },
    );
    table.row("where the path is direct, the client gets the error, as without a mesh", || {
        servers.remove("near");
        let refused = until("the client gets the error", || match Open::new(&web, to) {
            Ok(open) => {
                ensure!(open.name != "near", "it answers");
                Ok(None)
            }
            Err(error) => Ok(Some(error)),
        })?;
        let kind = refused.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{refused:#}");
        ensure!(ejected(node)?.is_empty(), "{:?}", ejected(node)?);
        servers.extend(serve(&lab, &["near"])?.pop().map(|server| ("near", server)));
        served_by(&web, to, &["near", "far", "away"])
    });
    table.row("a daemon that was killed", || {
        lab.nodes[2].ztunnel.kill()?;
        until_ejected(&lab, to, "away")?;
        lab.nodes[2].start()?;
        until_back(&lab, to, "away")
    });
    table.row("a daemon that hangs", || {
        lab.nodes[2].ztunnel.signal(Signal::SIGSTOP)?;
        let hung = until_ejected(&lab, to, "away");
        lab.nodes[2].ztunnel.signal(Signal::SIGCONT)?;
        hung?;
        until_back(&lab, to, "away")
    });
    table.row("an only endpoint is never ejected, and the client gets the error", || {
        let to = at(&lab, "alone", Family::V4);
        for _ in 0..4 {
            let mark = node.ztunnel.log_mark();
            ensure!(ask(&web, to).is_err(), "a server answers");
            let record = failure(node, mark, "connect_failed")?;
            ensure!(record["dst.workload"] == "alone", "{record}");
        }
        ensure!(ejected(node)?.is_empty(), "{:?}", ejected(node)?);
        Ok(())
    });
    table.finish();
    lab.finish()
}

const DENY_AWAY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: \
                         shop, name: deny}\nspec: {selector: {matchLabels: {app: away}}, action: DENY, \
                         rules: [{}]}\n";

#[test]
fn ejected_endpoint_serves_only_when_no_other_may() -> Result<()> {
    let (lab, mut servers) = fragile("consecutive_failures: 1, first_seconds: 600, longest_seconds: 600")?;
    let (node, web) = (&lab.nodes[0], lab.pod("shop/web"));
    let to = at(&lab, "cart", Family::V4);
    let slots = |number: usize| {
        eventually(&format!("the kernel has {number} slots"), || {
            let found = node.map_entries()?.get("ENDPOINTS").copied();
            ensure!(found == Some(number), "{found:?}");
            Ok(())
        })
    };
    let mut table = Rows::new();
    // A table for each family, with a slot for each endpoint.
    table.row("all may serve", || slots(6));
    table.row("a policy's refusal is final, and no fault of the endpoint", || {
        lab.apply("deny", DENY_AWAY)?;
        policy_in_force(&lab, "shop/away", "shop/deny", true)?;
        let mark = node.ztunnel.log_mark();
        until("a connection is refused", || {
            Ok(match Open::new(&web, to) {
                Ok(open) => {
                    ensure!(open.name != "away", "it answers");
                    None
                }
                Err(_) => Some(()),
            })
        })?;
        let record = failure(node, mark, "tunnel_refused")?;
        ensure!(record["dst.workload"] == "away", "{record}");
        ensure!(ejections(node)?[0] < 1.0, "it is held against it: {:?}", ejected(node)?);
        lab.remove("deny")?;
        no_policy_in_force(&lab, "shop/away")?;
        served_by(&web, to, &["near", "far", "away"])
    });
    table.row("one is ejected, also from the kernel's tables", || {
        servers.remove("far");
        until_ejected(&lab, to, "far")?;
        ensure!(ejected(node)? == ["far"], "{:?}", ejected(node)?);
        slots(4)
    });
    table.row("it is not even tried", || {
        servers.extend(serve(&lab, &["far"])?.pop().map(|server| ("far", server)));
        for family in FAMILIES {
            served_by(&web, at(&lab, "cart", family), &["near", "away"])?;
        }
        ensure!(servers["far"].accepted() == 0, "something was sent there");
        Ok(())
    });
    table.row("it serves when no other may, and is no longer ejected", || {
        set_ready(&lab, "near", false)?;
        set_ready(&lab, "away", false)?;
        let mark = node.ztunnel.log_mark();
        served_by(&web, to, &["far"])?;
        ensure!(says(node, mark, "endpoint returned", "far"), "the daemon does not log it");
        ensure!(ejected(node)?.is_empty(), "{:?}", ejected(node)?);
        set_ready(&lab, "near", true)?;
        set_ready(&lab, "away", true)?;
        slots(6)?;
        served_by(&web, to, &["near", "far", "away"])
    });
    table.finish();
    lab.finish()
}
