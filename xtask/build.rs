//! Hands the target on that cargo builds for.

fn main() {
    let target = std::env::var("TARGET").expect("set by cargo");
    println!("cargo::rustc-env=AMBIT_TARGET={target}");
}
