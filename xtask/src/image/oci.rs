//! An OCI image archive (image-spec 1.1) of some files: [`write`]. The same files give the same bytes.

use std::fs::File as Archive;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use aws_lc_rs::digest;
use serde_json::{Value, json};

/// A program in the image.
pub(crate) struct File {
    /// Without the leading slash.
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
}

/// Writes the archive whole or not at all; its size in bytes.
pub(crate) fn write(
    archive: &Path,
    name: &str,
    architecture: &str,
    files: &[File],
    entrypoint: &str,
) -> Result<u64> {
    let layer = layer(files)?;
    let config = serde_json::to_vec(&config(&layer, architecture, entrypoint))?;
    let manifest = serde_json::to_vec(&manifest(&layer, &config))?;
    let index = serde_json::to_vec(&index(&manifest, name, architecture))?;
    let version = serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?;

    let draft = archive.with_extension("tar.new");
    let context = || format!("failed to write {}", draft.display());
    let mut tar = tar::Builder::new(Archive::create(&draft).with_context(context)?);
    let blob = |content: &[u8]| format!("blobs/sha256/{}", hash(content));
    for (path, content) in [
        ("oci-layout".to_owned(), &version),
        ("index.json".to_owned(), &index),
        (blob(&manifest), &manifest),
        (blob(&config), &config),
        (blob(&layer), &layer),
    ] {
        append(&mut tar, &path, content, 0o644).with_context(context)?;
    }
    let mut file = tar.into_inner().with_context(context)?;
    file.flush().with_context(context)?;
    let size = file.metadata().with_context(context)?.len();
    std::fs::rename(&draft, archive).with_context(|| format!("failed to write {}", archive.display()))?;
    Ok(size)
}

fn layer(files: &[File]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        append(&mut tar, &file.path, &file.content, 0o755)?;
    }
    // Where a read-only root cannot make one.
    let mut folder = header(0, 0o1777);
    folder.set_entry_type(tar::EntryType::Directory);
    tar.append_data(&mut folder, "tmp/", std::io::empty())?;
    Ok(tar.into_inner()?)
}

fn append<W: std::io::Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> std::io::Result<()> {
    tar.append_data(&mut header(content.len() as u64, mode), path, content)
}

/// Owner, group and time are always the same.
fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn config(layer: &[u8], architecture: &str, entrypoint: &str) -> Value {
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": [entrypoint]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hash(layer))]},
    })
}

fn manifest(layer: &[u8], config: &[u8]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    })
}

fn index(manifest: &[u8], name: &str, architecture: &str) -> Value {
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", manifest);
    entry["platform"] = json!({"architecture": architecture, "os": "linux"});
    // containerd's importer takes the whole name from its own annotation.
    entry["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit(':').next(),
    });
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]})
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", hash(content)), "size": content.len()})
}

fn hash(content: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, content);
    digest.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests;
