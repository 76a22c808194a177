use std::net::SocketAddr;

use ambit_core::policy::Permit;
use ambit_proxy::{dial, workload::Served};

async fn with_permit<W: Served>(served: &W, permit: &Permit, client: SocketAddr) {
    let _ = dial::application(served, permit, client).await;
}

fn main() {
    let _ = with_permit::<ambit_proxy::workload::HostWorkload>;
}
