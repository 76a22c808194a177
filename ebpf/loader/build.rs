//! Finds the object with the kernel programs, which `cargo xtask ebpf` builds with a toolchain of its own.

use std::path::{Path, PathBuf};
use std::process::exit;

fn main() {
    println!("cargo::rerun-if-env-changed=AMBIT_EBPF_OBJECT");
    // At run time: build directories are copied between checkouts.
    let own = std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo");
    let usual = || Path::new(&own).join("../../target/ambit-ebpf/ambit-ebpf.o");
    let object = std::env::var_os("AMBIT_EBPF_OBJECT").map_or_else(usual, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env=AMBIT_EBPF_OBJECT_PATH={}", object.display()),
        Err(error) => {
            println!("cargo::error=no eBPF object at {}: {error}; run `cargo xtask ebpf`", object.display());
            exit(1);
        }
    }
}
