//! Wrong peers are refused: wrong certificates, wrong tunnels, wrong nodes, wrong programs. Each row has a
//! counterpart that is accepted.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use ambit_core::model::Identity;
use ambit_harness::{Family, Lab, NamespaceSpec, Node, Place, PodSpec, eventually, network};
use ambit_suites::hbone::{Authority, Certificate, Impostor, PORT, Validity, inside, request};
use ambit_suites::{Rows, Server, TIMEOUT, ask, connect};
use ambit_xds::{ca, client::Connection};
use anyhow::{Context, Result, bail, ensure};

const APP: u16 = 7000;
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

fn lab() -> Result<(Lab, Vec<Server>)> {
    let lab = Lab::builder()
        .namespace(NamespaceSpec::mesh("shop"))
        .namespace(NamespaceSpec::new("legacy"))
        .pod(PodSpec::new("shop/web"))
        .pod(PodSpec::new("shop/db").node(1))
        .pod(PodSpec::new("shop/other").node(1))
        .pod(PodSpec::new("shop/masked").node(1).unattended())
        .pod(PodSpec::new("legacy/old"))
        .start()?;
    let servers = ["shop/db", "shop/other"].map(|pod| Server::start(&lab.pod(pod), pod, APP));
    Ok((lab, servers.into_iter().collect::<Result<_>>()?))
}

/// How many connections the applications have got.
fn accepted(servers: &[Server]) -> usize {
    servers.iter().map(Server::accepted).sum()
}

/// The kernel answers for an application before that has accepted: so this takes its time.
fn reached(servers: &[Server], before: usize) -> Result<()> {
    eventually("the application accepts", || {
        ensure!(accepted(servers) == before + 1, "{} connections", accepted(servers) - before);
        Ok(())
    })
}

fn untouched(servers: &[Server], before: usize) -> Result<()> {
    ensure!(accepted(servers) == before, "an application was reached");
    Ok(())
}

#[test]
fn tunnel_requires_a_certificate_of_the_mesh() -> Result<()> {
    let (lab, servers) = lab()?;
    let (mesh, other) = (Authority::of(&lab)?, Authority::impostor()?);
    let (from, db) = (lab.pod("legacy/old"), lab.pod("shop/db"));
    let rows: [(&str, Option<Certificate>, bool); 8] = [
        ("a good certificate", Some(mesh.issue(Some(WEB), Validity::Now)?), true),
        ("no certificate", None, false),
        ("another CA", Some(other.issue(Some(WEB), Validity::Now)?), false),
        ("expired", Some(mesh.issue(Some(WEB), Validity::Expired)?), false),
        ("not valid yet", Some(mesh.issue(Some(WEB), Validity::NotYet)?), false),
        (
            "another trust domain",
            Some(mesh.issue(Some("spiffe://elsewhere/ns/shop/sa/web"), Validity::Now)?),
            false,
        ),
        ("no identity", Some(mesh.issue(None, Validity::Now)?), false),
        (
            "an identity of another form",
            Some(mesh.issue(Some("spiffe://cluster.local/shop/web"), Validity::Now)?),
            false,
        ),
    ];
    let mut table = Rows::new();
    for (name, certificate, good) in rows {
        for family in [Family::V4, Family::V6] {
            table.row(&format!("{name} {family:?}"), || {
                let before = accepted(&servers);
                let peer = SocketAddr::new(db.ip(family), PORT);
                let authority = SocketAddr::new(db.ip(family), APP).to_string();
                let answer = request(&from, peer, certificate.as_ref(), &authority);
                match answer {
                    Ok(status) if good => {
                        ensure!(status == 200, "answered {status}");
                        reached(&servers, before)
                    }
                    Ok(status) => bail!("answered {status}"),
                    Err(error) if good => Err(error),
                    Err(_) => untouched(&servers, before),
                }
            });
        }
    }
    table.finish();
    lab.finish()
}

#[test]
fn tunnel_reaches_only_applications_of_its_pod() -> Result<()> {
    let (lab, servers) = lab()?;
    let certificate = Authority::of(&lab)?.issue(Some(WEB), Validity::Now)?;
    let (from, db, other) = (lab.pod("legacy/old"), lab.pod("shop/db"), lab.pod("shop/other"));
    let node = lab.nodes[1].place.v4;
    let to = |ip: IpAddr, port: u16| SocketAddr::new(ip, port).to_string();
    let rows: [(&str, String, bool); 12] = [
        ("its application", to(db.v4.into(), APP), true),
        ("port 15008", to(db.v4.into(), 15008), false),
        ("port 15006", to(db.v4.into(), 15006), false),
        ("port 15001", to(db.v4.into(), 15001), false),
        ("port 0", to(db.v4.into(), 0), false),
        ("another pod of the node", to(other.v4.into(), APP), false),
        ("a pod of another node", to(lab.pod("shop/web").v4.into(), APP), false),
        ("loopback", to(Ipv4Addr::LOCALHOST.into(), APP), false),
        ("IPv6 loopback", to(Ipv6Addr::LOCALHOST.into(), APP), false),
        ("the node's admin port", to(node.into(), 15000), false),
        ("the outside", to(network::OUTSIDE.into(), 443), false),
        ("a name that is no service", format!("no-such-service.shop.svc.cluster.local:{APP}"), false),
    ];
    let mut table = Rows::new();
    for (name, authority, good) in rows {
        table.row(name, || {
            let before = accepted(&servers);
            let status = request(&from, SocketAddr::new(db.v4.into(), PORT), Some(&certificate), &authority)?;
            if good {
                ensure!(status == 200, "answered {status}");
                return reached(&servers, before);
            }
            ensure!(status.is_client_error() || status.is_server_error(), "answered {status}");
            untouched(&servers, before)
        });
    }
    table.row("a port without a listener: 503", || {
        let status =
            request(&from, SocketAddr::new(db.v4.into(), PORT), Some(&certificate), &to(db.v4.into(), 9))?;
        ensure!(status == 503, "{status}");
        Ok(())
    });
    table.row("a policy that refuses: 401", || {
        let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                      metadata: {namespace: shop, name: allow-none}\nspec: {action: ALLOW}\n";
        lab.apply("policy", policy)?;
        eventually("the tunnel is refused", || {
            let status = request(
                &from,
                SocketAddr::new(db.v4.into(), PORT),
                Some(&certificate),
                &to(db.v4.into(), APP),
            )?;
            ensure!(status == 401, "{status}");
            Ok(())
        })
    });
    table.finish();
    lab.finish()
}

#[test]
fn client_refuses_peer_with_another_identity() -> Result<()> {
    let (lab, _servers) = lab()?;
    let (mesh, other) = (Authority::of(&lab)?, Authority::impostor()?);
    let (web, pod) = (lab.pod("shop/web"), lab.pod("shop/masked"));
    let its_own = "spiffe://cluster.local/ns/shop/sa/masked";
    let rows: [(&str, Certificate, bool); 6] = [
        ("the destination itself", mesh.issue(Some(its_own), Validity::Now)?, true),
        ("another identity", mesh.issue(Some(DB), Validity::Now)?, false),
        ("the client's own identity", mesh.issue(Some(WEB), Validity::Now)?, false),
        ("another CA", other.issue(Some(its_own), Validity::Now)?, false),
        ("expired", mesh.issue(Some(its_own), Validity::Expired)?, false),
        ("no identity", mesh.issue(None, Validity::Now)?, false),
    ];
    let mut table = Rows::new();
    // Good last: its connection would be pooled and serve the others.
    for (name, certificate, good) in rows.into_iter().rev() {
        table.row(name, || {
            let peer = Impostor::start(&pod, &mesh, &certificate)?;
            let said = hear(&web, SocketAddr::new(pod.v4.into(), APP));
            if good {
                ensure!(said? == "impostor\n" && peer.requests() == 1);
            } else {
                ensure!(peer.requests() == 0, "a tunnel was asked for");
                ensure!(
                    said.is_err() || said.as_ref().is_ok_and(String::is_empty),
                    "the client heard {said:?}"
                );
            }
            Ok(())
        });
    }
    table.finish();
    lab.finish()
}

/// What a server sends to a client that sends nothing.
fn hear(from: &Place, to: SocketAddr) -> Result<String> {
    let mut said = String::new();
    connect(from, to)?.read_to_string(&mut said)?;
    Ok(said)
}

/// A field of a node's bootstrap file.
fn bootstrap(node: &Node) -> Result<serde_json::Value> {
    let text = std::fs::read_to_string(node.dir.join("bootstrap.yaml"))?;
    serde_yaml_ng::from_str(&text).context("failed to parse a bootstrap file")
}

#[test]
fn node_gets_certificates_only_for_identities_it_hosts() -> Result<()> {
    let (lab, _servers) = lab()?;
    let bootstraps = lab.nodes.iter().map(bootstrap).collect::<Result<Vec<_>>>()?;
    let word = |node: usize, field: &str| {
        bootstraps[node][field]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("no {field} in a bootstrap file"))
    };
    let (first, second) = (word(0, "token")?, word(1, "token")?);
    let (controller, server_name, root) = (word(0, "controller")?, word(0, "server_name")?, word(0, "root")?);
    let mut forged = first.clone();
    let last = forged.pop().context("an empty token")?;
    forged.push(if last == '0' { '1' } else { '0' });
    let rows: [(&str, &str, &str, bool); 8] = [
        ("its own workload", &first, WEB, true),
        ("another node's workload", &first, DB, false),
        ("the other node, its own workload", &second, DB, true),
        ("a pod outside the mesh", &first, "spiffe://cluster.local/ns/legacy/sa/old", false),
        ("an identity without a pod", &first, "spiffe://cluster.local/ns/shop/sa/unused", false),
        ("another trust domain", &first, "spiffe://elsewhere/ns/shop/sa/web", false),
        ("a forged token", &forged, WEB, false),
        ("no token", "", WEB, false),
    ];
    let mut table = Rows::new();
    for (name, token, identity, good) in rows {
        table.row(name, || {
            let connection = Connection {
                endpoint: format!("https://{controller}"),
                server_name: server_name.clone(),
                root_pem: root.clone(),
                token: token.to_owned(),
                node: "node0".to_owned(),
            };
            let identity: Identity = identity.parse()?;
            let key = rcgen::KeyPair::generate()?;
            let csr = rcgen::CertificateParams::default().serialize_request(&key)?.pem()?;
            let answer = inside(&lab.nodes[0].place, async {
                let client = ca::Client::new(connection.clone())?;
                Ok(client.create_certificate(&csr, &identity, Duration::from_hours(1)).await)
            })?;
            match answer {
                Ok(chain) if good => ensure!(chain.len() >= 2, "a chain of {}", chain.len()),
                Ok(_) => bail!("a certificate was given"),
                Err(error) if good => return Err(error).context("failed to get a certificate"),
                Err(error) => {
                    let said = format!("{:#}", anyhow::Error::from(error));
                    let words =
                        ["PermissionDenied", "permission", "Unauthenticated", "authentic", "credential"];
                    ensure!(
                        words.iter().any(|word| said.contains(word)),
                        "refused for another reason: {said}"
                    );
                }
            }
            Ok(())
        });
    }
    table.finish();
    lab.finish()
}

#[test]
fn configuration_requires_a_node_token() -> Result<()> {
    let (lab, _servers) = lab()?;
    let file = bootstrap(&lab.nodes[0])?;
    let word = |field: &str| file[field].as_str().map(str::to_owned).with_context(|| format!("no {field}"));
    let good = word("token")?;
    let mut table = Rows::new();
    let rows = [
        ("its token", good.clone(), true),
        ("a longer token", format!("{good}0"), false),
        ("no token", String::new(), false),
    ];
    for (name, token, accepted) in rows {
        table.row(name, || {
            let connection = Connection {
                endpoint: format!("https://{}", word("controller")?),
                server_name: word("server_name")?,
                root_pem: word("root")?,
                token,
                node: "node0".to_owned(),
            };
            let (status, mut watched) = tokio::sync::watch::channel(ambit_xds::client::Status::default());
            let (updates, received) = std::sync::mpsc::channel();
            let seen = inside(&lab.nodes[0].place, async {
                let on_update = move |update: ambit_xds::client::Update| {
                    // The test ends when it no longer listens.
                    let _ = updates.send(update.changes.len());
                    Vec::new()
                };
                tokio::select! {
                    ended = ambit_xds::client::run(connection, status, on_update) => {
                        bail!("the client ended: {ended:?}")
                    }
                    seen = watched.wait_for(|status| status.synced || status.error.is_some()) => {
                        Ok(seen?.clone())
                    }
                }
            })?;
            let resources: usize = received.try_iter().sum();
            let answered = seen.synced == accepted && (resources > 0) == accepted;
            ensure!(answered, "{resources} resources, {seen:?}");
            let error = seen.error.unwrap_or_default().to_lowercase();
            let unauthenticated = error.contains("authenti") || error.contains("credential");
            ensure!(accepted || unauthenticated, "refused for another reason: {error}");
            Ok(())
        });
    }
    table.finish();
    lab.finish()
}

/// The TCP ports on which something listens in a pod.
fn listening(pod: &Place, family: Family) -> Result<Vec<u16>> {
    let file = if family == Family::V4 { "/proc/thread-self/net/tcp" } else { "/proc/thread-self/net/tcp6" };
    let text = pod.run(|| std::fs::read_to_string(file))??;
    let mut ports = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.get(3) == Some(&"0A") {
            let port = fields[1].rsplit(':').next().context("no port")?;
            ports.push(u16::from_str_radix(port, 16)?);
        }
    }
    Ok(ports)
}

#[test]
fn applications_cannot_use_daemon_listeners() -> Result<()> {
    let (lab, servers) = lab()?;
    let web = lab.pod("shop/web");
    let mut table = Rows::new();
    table.row("the application's own connection works", || {
        ask(&web, SocketAddr::new(lab.pod("shop/db").v4.into(), APP)).map(drop)
    });
    let before = accepted(&servers);
    for family in [Family::V4, Family::V6] {
        let ports = listening(&web, family)?;
        table.row(&format!("there are listeners {family:?}"), || {
            ensure!(!ports.is_empty());
            Ok(())
        });
        let loopback: IpAddr = match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        for port in ports {
            let dialled: [(&str, &Place, IpAddr); 3] = [
                ("the pod itself, by loopback", &web, loopback),
                ("the pod itself, by its address", &web, web.ip(family)),
                ("another pod", &lab.pod("legacy/old"), web.ip(family)),
            ];
            for (who, place, ip) in dialled {
                table.row(&format!("{who} dials {port} {family:?}"), || {
                    no_service(place, SocketAddr::new(ip, port))
                });
            }
        }
    }
    table.row("no application was reached", || untouched(&servers, before));
    table.finish();
    lab.finish()
}

/// A connection there ends without data, or is not answered at all.
fn no_service(from: &Place, to: SocketAddr) -> Result<()> {
    let Ok(mut stream) = from.run(|| TcpStream::connect_timeout(&to, TIMEOUT))? else { return Ok(()) };
    stream.set_read_timeout(Some(TIMEOUT))?;
    let _ = std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bail!("it keeps the connection"),
        // A TLS alert says that plain text is not understood; nothing else may be said.
        _ if said.is_empty() || said.first() == Some(&21) => Ok(()),
        _ => bail!("it says {:?}", String::from_utf8_lossy(&said)),
    }
}
