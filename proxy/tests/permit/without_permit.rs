use std::net::SocketAddr;

use ambit_proxy::{dial, workload::Served};

async fn without_permit<W: Served>(served: &W, address: SocketAddr, client: SocketAddr) {
    let _ = dial::application(served, address, client).await;
}

fn main() {}
