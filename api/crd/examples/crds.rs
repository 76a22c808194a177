//! Writes the CustomResourceDefinitions into a folder: `cargo run -p ambit-crd --example crds --features
//! schema -- FOLDER`.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let folder = env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| io::Error::other("which folder?"))?;
    for (name, text) in ambit_crd::schema::files() {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}
