//! Who owns an address, with real connections: entries of another namespace take nothing that is not theirs,
//! and a Service takes only its ports of an address that it shares.

use std::net::SocketAddr;

use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, ServiceSpec, eventually};
use ambit_suites::paths::ask_and_trace;
use ambit_suites::{Rows, Server, ask};
use anyhow::{Result, ensure};

/// What an entry of `aaa` claims, with an endpoint that answers as `thief`.
fn entry(lab: &Lab, name: &str, address: &str, export_to: &str) -> String {
    let endpoint = lab.pod("out/thief").ip(Family::V4);
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{namespace: aaa, name: {name}}}\n\
         spec:\n  hosts: [{name}.example]\n  addresses: [{address}]\n  exportTo: [{export_to}]\n  \
         resolution: STATIC\n  endpoints: [{{address: {endpoint}}}]\n  \
         ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: 8080}}]\n"
    )
}

/// A Service `shop/cart` in the mesh and one outside it, clients in two namespaces, and a server of `out`,
/// which is not in the mesh, to which the entries of `aaa` lead.
fn lab() -> Result<(Lab, Vec<Server>)> {
    let lab = Lab::builder()
        .namespace(NamespaceSpec::mesh("aaa"))
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("out"))
        .pod(PodSpec::new("aaa/web"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/cart").node(1))
        .pod(PodSpec::new("out/thief").node(1))
        .pod(PodSpec::new("out/db"))
        .service(ServiceSpec::new("shop/cart").port(80, 8080))
        .start()?;
    let mut servers = Vec::new();
    for pod in ["shop/cart", "out/thief"] {
        servers.push(Server::start(&lab.pod(pod), pod, 8080)?);
    }
    servers.push(Server::start(&lab.pod("out/db"), "out/db", 80)?);
    Ok((lab, servers))
}

/// Who answers the client, once it is this server.
fn reaches(lab: &Lab, client: &str, to: SocketAddr, server: &str) -> Result<()> {
    eventually(&format!("{client} reaches {server}"), || {
        let answer = ask(&lab.pod(client), to)?;
        ensure!(answer.server == server, "{to} is answered by {}", answer.server);
        Ok(())
    })
}

/// Waits until the controller says this of an object.
fn told(lab: &Lab, object: &str, message: &str) -> Result<()> {
    eventually(&format!("{object} is told"), || {
        let debug = lab.controller_get(15000, "/debug")?;
        ensure!(debug.contains(object) && debug.contains(message), "{debug}");
        Ok(())
    })
}

#[test]
fn an_entry_of_another_namespace_takes_nothing_that_is_owned() -> Result<()> {
    let (lab, _servers) = lab()?;
    let mut table = Rows::new();
    let cart = lab.service("shop/cart", Family::V4);
    let (pod, db) = (lab.pod("shop/cart").ip(Family::V4), lab.pod("out/db").ip(Family::V4));
    let clients = ["aaa/web", "shop/web"];
    for (name, address, port, owner, winner) in [
        ("service", cart, 80, "shop/cart", "Service shop/cart"),
        ("pod", pod, 8080, "shop/cart", "Pod shop/cart"),
        ("outside", db, 80, "out/db", "Pod out/db"),
    ] {
        let to = SocketAddr::new(address, port);
        table.row(&format!("{name}: before"), || {
            clients.into_iter().try_for_each(|client| reaches(&lab, client, to, owner))
        });
        lab.apply(&format!("claim-{name}"), &entry(&lab, name, &address.to_string(), "'*'"))?;
        table.row(&format!("{name}: the entry is told"), || {
            told(&lab, &format!("ServiceEntry aaa/{name}"), &format!("it belongs to {winner}"))
        });
    }
    // The last claim that is made is in force at the daemons, and so all of them.
    lab.apply("free", &entry(&lab, "free", "240.0.0.9", "'*'"))?;
    table.row("an address that nobody owns", || {
        let to = SocketAddr::from(([240, 0, 0, 9], 80));
        clients.into_iter().try_for_each(|client| reaches(&lab, client, to, "out/thief"))
    });
    for (name, to, owner) in [
        ("service", SocketAddr::new(cart, 80), "shop/cart"),
        ("pod", SocketAddr::new(pod, 8080), "shop/cart"),
        ("outside", SocketAddr::new(db, 80), "out/db"),
    ] {
        for client in clients {
            table.row(&format!("{name}: afterwards, {client}"), || {
                let answer = ask(&lab.pod(client), to)?;
                ensure!(answer.server == owner, "answered by {}", answer.server);
                Ok(())
            });
        }
    }
    table.row("and by tunnel", || {
        let path = ask_and_trace(&lab.nodes[1], &lab.pod("shop/web"), SocketAddr::new(cart, 80))?;
        ensure!(path == "tunnel", "by {path}");
        Ok(())
    });
    table.finish();
    lab.finish()
}

#[test]
fn an_entry_concerns_those_that_it_is_exported_to() -> Result<()> {
    let (lab, _servers) = lab()?;
    let mut table = Rows::new();
    // The server of `out` has the address, where no entry says otherwise.
    let shared = "10.77.0.1";
    lab.pod("out/db").netns.ip(&format!("addr add {shared}/32 dev lo\n"))?;
    let via = lab.pod("out/db").v4;
    lab.nodes[0].place.netns.ip(&format!("route add {shared}/32 via {via}\n"))?;
    let to: SocketAddr = format!("{shared}:80").parse()?;
    let all = [("aaa/web", "out/db"), ("shop/web", "out/db")];
    let rows = [
        ("none", None, all),
        ("to its own namespace", Some("."), [("aaa/web", "out/thief"), ("shop/web", "out/db")]),
        ("to another", Some("shop"), [("aaa/web", "out/db"), ("shop/web", "out/thief")]),
        ("to all", Some("'*'"), [("aaa/web", "out/thief"), ("shop/web", "out/thief")]),
        ("to nobody", Some("'~'"), all),
    ];
    for (name, export_to, expected) in rows {
        if let Some(export_to) = export_to {
            lab.apply("entry", &entry(&lab, "entry", shared, export_to))?;
        }
        for (client, server) in expected {
            table.row(&format!("{name}: {client}"), || reaches(&lab, client, to, server));
        }
    }
    table.finish();
    lab.finish()
}

#[test]
fn a_service_takes_only_its_ports_of_a_nodes_address() -> Result<()> {
    let (lab, _servers) = lab()?;
    let mut table = Rows::new();
    let node = &lab.nodes[0].place;
    let (kubelet, exporter) =
        (Server::start(node, "kubelet", 10250)?, Server::start(node, "exporter", 9100)?);
    let at = |port| SocketAddr::new(node.v4.into(), port);
    let clients = ["aaa/web", "shop/web"];
    let others = |name: &str, table: &mut Rows| {
        for (client, port, server) in
            clients.into_iter().flat_map(|c| [(c, 10250, "kubelet"), (c, 9100, "exporter")])
        {
            table.row(&format!("{name}: {client} to {port}"), || reaches(&lab, client, at(port), server));
        }
    };
    others("before", &mut table);
    lab.add_service(
        ServiceSpec::new("shop/public")
            .selects("cart")
            .port(80, 8080)
            .field("externalIPs", &format!("[{}]", node.v4)),
    )?;
    for client in clients {
        table.row(&format!("the Service's port: {client}"), || reaches(&lab, client, at(80), "shop/cart"));
    }
    others("with the Service", &mut table);
    table.finish();
    drop((kubelet, exporter));
    lab.finish()
}
