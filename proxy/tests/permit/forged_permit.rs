use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::model::Workload;
use ambit_core::policy::Permit;

fn forged(workload: Arc<Workload>, address: SocketAddr) -> Permit {
    Permit { workload, address, policy: None, depends_on_source: false }
}

fn main() {}
