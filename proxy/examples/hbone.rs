//! An HBONE server and a client as two plain processes: no pods, no eBPF, no root. Certificates, policies and
//! the mesh come from a real controller.
//!
//! `hbone server BOOTSTRAP UID ADDRESS` serves the workload UID at ADDRESS, where an application echoes.
//! `hbone client BOOTSTRAP UID ADDRESS DESTINATION TEXT` connects as the workload UID, sends TEXT, and prints
//! the answer. UID and ADDRESS are those of pods that the controller knows (its folder of objects).
//! `tests/example.rs` runs both.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ambit_certificates::{Certificates, Settings};
use ambit_core::inbound::HBONE_PORT;
use ambit_core::model::WorkloadUid;
use ambit_daemon_kit::bootstrap::Bootstrap;
use ambit_daemon_kit::controller::Controller;
use ambit_hbone::{Http2, pool::Pool};
use ambit_proxy::controller::{CaSigner, ControllerCredentials};
use ambit_proxy::dial::Dialer;
use ambit_proxy::identity::Identities;
use ambit_proxy::outbound::{self, Accepted, Asked};
use ambit_proxy::proxy::{Proxy, Timeouts};
use ambit_proxy::sync::MeshSync;
use ambit_proxy::workload::{HostWorkload, LocalWorkload, Workloads};
use ambit_proxy::{inbound, tasks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

type Error = Box<dyn std::error::Error>;

/// A proxy of one workload.
struct Running {
    proxy: Arc<Proxy>,
    pool: Pool<Dialer<HostWorkload>>,
    served: Arc<HostWorkload>,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["server", bootstrap, uid, address] => server(start(bootstrap, uid, address.parse()?)?).await,
        ["client", bootstrap, uid, address, destination, text] => {
            client(start(bootstrap, uid, address.parse()?)?, destination.parse()?, text).await
        }
        _ => Err("usage: hbone server BOOTSTRAP UID ADDRESS | client … DESTINATION TEXT".into()),
    }
}

/// Puts a proxy together, and has it follow the controller.
fn start(bootstrap: &str, uid: &str, address: IpAddr) -> Result<Running, Error> {
    let bootstrap = Bootstrap::read(Path::new(bootstrap))?;
    let node = bootstrap.node.clone();
    let credentials = ControllerCredentials { controller: Controller::from(bootstrap), node };
    let settings = Settings { ttl: Duration::from_hours(1), roots: credentials.controller.roots()? };
    let certificates = Certificates::new(CaSigner::new(credentials.clone())?, &settings)?;

    let timeouts = Timeouts { connect: Duration::from_secs(10) };
    let proxy = Arc::new(Proxy::new(timeouts, Some(ambit_core::outlier::Settings::default())));
    let workload = LocalWorkload::new(WorkloadUid(uid.into()));
    let served = Arc::new(HostWorkload { workload, address: Some(address) });
    let workloads = Arc::new(Workloads::default());
    workloads.insert(served.clone());
    let dialer = Dialer { workloads: workloads.clone(), http2: Http2::default() };
    let pool = Pool::new(dialer, timeouts.endpoint());

    tokio::spawn(tasks::follow_certificates(&certificates, pool.clone()));
    let identities = Identities { certificates, workloads, pool: pool.clone() };
    let sync = MeshSync::new(proxy.mesh.clone(), proxy.connections.clone(), identities);
    tokio::spawn(tasks::follow_controller(credentials, watch::Sender::default(), sync));
    Ok(Running { proxy, pool, served })
}

/// Takes tunnels to the workload's application: peer certificate, policy, application, relay.
async fn server(Running { proxy, served, .. }: Running) -> Result<(), Error> {
    let address = served.address.ok_or("a server needs an address")?;
    let application = TcpListener::bind((address, 8080)).await?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = application.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    let tunnels = TcpListener::bind((address, HBONE_PORT)).await?;
    println!("listening");
    loop {
        let (stream, peer) = tunnels.accept().await?;
        tokio::spawn(inbound::tunnels(proxy.clone(), served.clone(), stream, peer));
    }
}

/// Connects as an application would whose `connect()` was captured, and sends a text through the tunnel.
async fn client(running: Running, destination: SocketAddr, text: &str) -> Result<(), Error> {
    let Running { proxy, pool, served } = running;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut application = TcpStream::connect(listener.local_addr()?).await?;
    let (stream, client) = listener.accept().await?;
    let asked = Ok(Asked { destination, chosen: None, captures_all: false });
    let accepted = Accepted { stream, client, asked, held: None };
    let carried = tokio::spawn(outbound::serve(proxy, pool, served, accepted, |_, _, _| {}));
    application.write_all(text.as_bytes()).await?;
    application.shutdown().await?;
    let mut answer = String::new();
    application.read_to_string(&mut answer).await?;
    println!("{answer}");
    carried.await?;
    let ended = ambit_proxy::report::recent().into_iter().next().ok_or("nothing was reported")?;
    println!("{} {}", ended.connection.path.as_str(), ended.ending.reason.name());
    Ok(())
}
