//! A capture between the nodes shows no byte of application data, whichever daemon dies.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};

use ambit_harness::{Family, Lab, NamespaceSpec, PodSpec, ServiceSpec, eventually};
use ambit_suites::{MARKER, Rows, Server, TIMEOUT, ask, connect, exchange, marked_payload};
use anyhow::{Result, bail, ensure};

const PORT: u16 = 7000;
const HBONE: u16 = 15008;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn lab() -> Result<(Lab, Vec<Server>)> {
    let lab = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/near"))
        .pod(PodSpec::new("shop/db").node(1))
        .pod(PodSpec::new("legacy/old"))
        .pod(PodSpec::new("legacy/far").node(1))
        .service(ServiceSpec::new("shop/db").port(80, PORT))
        .start()?;
    let servers = ["shop/db", "shop/near", "legacy/far"].map(|pod| Server::start(&lab.pod(pod), pod, PORT));
    Ok((lab, servers.into_iter().collect::<Result<_>>()?))
}

#[test]
fn traffic_between_nodes_is_encrypted() -> Result<()> {
    const SIZE: usize = 1 << 20;
    let (lab, _servers) = lab()?;
    let mut table = Rows::new();
    for family in FAMILIES {
        let address = lab.pod("shop/db").ip(family);
        let service = lab.service("shop/db", family);
        let far = lab.pod("legacy/far").ip(family);
        // The last row shows that the method sees what there is to see.
        let rows: [(&str, &str, IpAddr, u16, bool); 5] = [
            ("pod", "shop/web", address, PORT, true),
            ("service", "shop/web", service, 80, true),
            ("IPv4 in an IPv6 socket", "shop/web", mapped(address), PORT, true),
            ("service in an IPv6 socket", "shop/web", mapped(service), 80, true),
            ("without a mesh", "legacy/old", far, PORT, false),
        ];
        for (name, client, to, port, private) in rows {
            table.row(&format!("{name} {family:?}"), || {
                let capture = lab.capture()?;
                exchange(&lab.pod(client), SocketAddr::new(to, port), &marked_payload(SIZE))?;
                let trace = capture.stop()?;
                let readable = trace.holding(MARKER);
                let (tunnel, plain) = (trace.tcp_port(HBONE), trace.tcp_port(port));
                ensure!(trace.payload_bytes() >= 2 * SIZE, "only {} bytes travelled", trace.payload_bytes());
                if private {
                    ensure!(readable == 0, "{readable} packets hold the marker");
                    ensure!(plain == 0, "{plain} packets of the application's own connection");
                    ensure!(tunnel > 0, "no packet of a tunnel");
                } else {
                    ensure!(readable > 0, "the capture misses what is there");
                    ensure!(tunnel == 0, "a tunnel where there should be none");
                }
                Ok(())
            });
        }
    }
    table.finish();
    lab.finish()
}

fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        IpAddr::V6(_) => address,
    }
}

/// While a daemon is dead: an error for the client, nothing readable on the wire. Afterwards: everything as
/// before, pods untouched.
fn while_dead(dead: usize, clients_node: bool) -> Result<()> {
    let (lab, servers) = lab()?;
    let (web, db) = (lab.pod("shop/web"), lab.pod("shop/db"));
    let targets: Vec<SocketAddr> = FAMILIES
        .into_iter()
        .flat_map(|family| {
            [SocketAddr::new(db.ip(family), PORT), SocketAddr::new(lab.service("shop/db", family), 80)]
        })
        .collect();
    for to in &targets {
        exchange(&web, *to, &marked_payload(10_000))?;
    }
    let mut open = connect(&web, targets[0])?;
    let mut greeting = [0; 7];
    open.read_exact(&mut greeting)?;

    let capture = lab.capture()?;
    lab.nodes[dead].ztunnel.kill()?;
    let accepted = servers[0].accepted();
    let mut table = Rows::new();
    for to in &targets {
        table.row(&format!("a new connection to {to} fails"), || {
            match exchange(&web, *to, &marked_payload(10_000)) {
                Ok(answer) => bail!("{} answers", answer.server),
                Err(_) => Ok(()),
            }
        });
    }
    table.row("an open connection ends", || {
        open.set_read_timeout(Some(TIMEOUT))?;
        // What is written now can only be lost or carried in a tunnel that still stands.
        let _ = std::io::Write::write_all(&mut open, &marked_payload(10_000));
        let mut rest = Vec::new();
        match open.read_to_end(&mut rest) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bail!("it hangs"),
            Ok(_) if !rest.is_empty() && rest.len() > 10_000 => bail!("it goes on"),
            _ => Ok(()),
        }
    });
    if clients_node {
        table.row("a pod on the same node is out of reach too", || {
            match ask(&web, SocketAddr::new(lab.pod("shop/near").v4.into(), PORT)) {
                Ok(answer) => bail!("{} answers", answer.server),
                Err(_) => Ok(()),
            }
        });
    }
    table.row("nothing reached the server", || {
        ensure!(servers[0].accepted() == accepted, "{} connections more", servers[0].accepted() - accepted);
        Ok(())
    });
    table.row("a new daemon without enrolled pods carries nothing", || {
        lab.nodes[dead].ztunnel.spawn()?;
        lab.nodes[dead].up()?;
        ensure!(exchange(&web, targets[0], &marked_payload(10_000)).is_err(), "something answers");
        Ok(())
    });
    let trace = capture.stop()?;
    table.row("nothing readable on the wire", || {
        ensure!(trace.holding(MARKER) == 0, "{} packets hold the marker", trace.holding(MARKER));
        ensure!(
            trace.tcp_port(PORT) == 0,
            "{} packets of the application's own connection",
            trace.tcp_port(PORT)
        );
        Ok(())
    });
    table.row("pods recover untouched", || {
        lab.nodes[dead].enrol_all()?;
        for to in &targets {
            eventually("the connection works again", || {
                exchange(&web, *to, &marked_payload(10_000)).map(drop)
            })?;
        }
        Ok(())
    });
    table.finish();
    lab.finish()
}

#[test]
fn client_gets_an_error_when_the_destinations_daemon_is_killed() -> Result<()> {
    while_dead(1, false)
}

#[test]
fn client_gets_an_error_when_its_own_daemon_is_killed() -> Result<()> {
    while_dead(0, true)
}
