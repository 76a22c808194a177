//! h2spec, the conformance suite of HTTP/2, against the HTTP/2 that clients speak inside their tunnels.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use ambit_core::model::AppProtocol;
use ambit_hbone::Tunnel;
use ambit_hbone::request::ConnectRequest;
use http::{Method, Response};
use tokio::net::{TcpListener, TcpStream};

use crate::lab::{Lab, full, handler};

/// Where `cargo xtask h2spec` says that the program is.
const PROGRAM: &str = "AMBIT_H2SPEC";

/// What does not end as h2spec wants, and why that is right.
const KNOWN: [&str; 1] = [
    // The port speaks HTTP/1 too, whose 400 h2spec cannot read; the connection is closed behind it.
    "2: Sends invalid connection preface",
];

#[tokio::test]
#[ignore = "`cargo xtask h2spec` builds the program and runs this"]
async fn http2_in_tunnels_conforms() {
    let program = std::env::var_os(PROGRAM).expect("run by `cargo xtask h2spec`");
    let lab = Lab::new().await;
    let cart = lab.service("cart", 100, AppProtocol::Http2);
    let app = handler(|request| async move {
        let text = if request.method() == Method::HEAD { "" } else { "hello" };
        Response::new(full(text))
    });
    lab.app("cart-1", 11, "cart", app).await;
    let listener = TcpListener::bind(lab.address(210, 0)).await.expect("an address");
    let address = listener.local_addr().expect("an address");
    let connection = lab.connection("web", 200).await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tunnel = connection.open(&ConnectRequest::to(cart)).await.expect("a tunnel");
            tokio::spawn(bridge(tunnel, stream));
        }
    });
    let mut h2spec = Command::new(program);
    h2spec.args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()]);
    h2spec.args(["--strict", "--timeout", "5"]).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || h2spec.output()).await.expect("no panic");
    let output = String::from_utf8_lossy(&output.expect("h2spec starts").stdout).into_owned();
    let sum = output.lines().find(|line| line.contains(" tests, ")).expect(&output);
    println!("{sum}");
    let failed: BTreeSet<&str> =
        output.lines().filter_map(|line| Some(line.split_once("× ")?.1.trim())).collect();
    assert_eq!(failed, BTreeSet::from(KNOWN), "{output}");
}

/// h2spec speaks TCP: each of its connections is carried by a tunnel of its own, until one side has ended.
async fn bridge(tunnel: Tunnel, mut stream: TcpStream) {
    let (mut from_waypoint, mut to_waypoint) = tokio::io::split(tunnel);
    let (mut from_h2spec, mut to_h2spec) = stream.split();
    tokio::select! {
        _ = tokio::io::copy(&mut from_waypoint, &mut to_h2spec) => {}
        _ = tokio::io::copy(&mut from_h2spec, &mut to_waypoint) => {}
    }
}
