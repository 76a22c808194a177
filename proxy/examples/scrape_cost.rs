//! What a scrape of the connection metrics costs, with 5,000 series:
//! `cargo run --release -p ambit-proxy --example scrape_cost`.

use std::time::Instant;

use ambit_core::Reason;
use ambit_daemon_kit::telemetry::exposition::Exposition;
use ambit_proxy::report::{self, Bytes, ConnectionInfo, Direction, Party, Path, ending};
use ambit_proxy::testing::workload;

const LABEL_SETS: usize = 1000;

fn main() {
    for number in 0..LABEL_SETS {
        let mut source = Party::at(([10, 0, 0, 1], 40_000).into());
        let mut named = workload("web", &["10.0.0.1"]);
        named.workload_name = format!("web-{number}").into();
        source.workload = Some(named.into());
        let info = ConnectionInfo {
            direction: Direction::Outbound,
            path: Path::Plaintext,
            mutual_tls: false,
            source,
            destination: Party::at(([10, 0, 1, 1], 80).into()),
            hbone_address: None,
            client: None,
            service: None,
        };
        report::failed(&info, Instant::now(), &ending::unmade(Reason::ConnectFailed, "on purpose"));
        let bytes = Bytes { from_client: 1, from_server: 1 };
        report::opened(info).closed(bytes, &ending::orderly());
    }
    for _ in 0..5 {
        let began = Instant::now();
        let mut all = Exposition::default();
        report::show(&mut all);
        let bytes = all.into_text().len();
        println!("{} series, {bytes} bytes: {:?}", 5 * LABEL_SETS, began.elapsed());
    }
}
