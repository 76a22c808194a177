//! Compiles the protobuf definitions in `proto/` with protox: no `protoc` is needed to build Ambit.

use std::error::Error;

const PROTOS: [&str; 6] = [
    "istio/workload/workload.proto",
    "istio/security/authorization.proto",
    "istio/v1/auth/ca.proto",
    "envoy/service/discovery/v3/discovery.proto",
    "ambit/v1/extension.proto",
    "ambit/v1/routes.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(PROTOS, ["proto"])?;
    // Ordered maps make the encoding deterministic, and with it the content hashes that serve as versions.
    tonic_prost_build::configure().btree_map(".").compile_fds(files)?;
    Ok(())
}
