//! Image archives, in the form `docker save` writes and `ctr images import` reads: for images of a few files,
//! without a container engine.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

/// What a file of an image holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// Executable.
    Program(Vec<u8>),
    Data(Vec<u8>),
    Directory,
}

/// An image in the making.
#[derive(Clone, Debug)]
pub struct Archive {
    image: String,
    files: Vec<(String, Content)>,
    entrypoint: Vec<String>,
    user: u32,
}

impl Archive {
    /// An image of this name and tag.
    pub fn new(image: &str) -> Self {
        Self { image: image.to_owned(), files: Vec::new(), entrypoint: Vec::new(), user: 0 }
    }

    /// Adds a file at an absolute path; the folders it lies in come with it.
    #[must_use]
    pub fn file(mut self, path: &str, content: Content) -> Self {
        self.files.push((path.trim_start_matches('/').to_owned(), content));
        self
    }

    /// Adds a program of this machine with the libraries it needs, under its own name in `/bin`.
    pub fn program(mut self, path: &Path) -> Result<Self> {
        let name = path.file_name().context("a program has a name")?.to_string_lossy().into_owned();
        let read =
            |path: &Path| std::fs::read(path).with_context(|| format!("failed to read {}", path.display()));
        self.files.push((format!("bin/{name}"), Content::Program(read(path)?)));
        let output = Command::new("ldd").arg(path).output().context("failed to start ldd")?;
        // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, and the loader without an arrow; a static program has no
        // lines like that.
        let text = String::from_utf8_lossy(&output.stdout);
        for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
            let name = library.trim_start_matches('/').trim_end_matches(':');
            if !self.files.iter().any(|(known, _)| known == name) {
                self.files.push((name.to_owned(), Content::Program(read(Path::new(library))?)));
            }
        }
        Ok(self)
    }

    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The user that the program runs as; root by default.
    #[must_use]
    pub fn user(mut self, user: u32) -> Self {
        self.user = user;
        self
    }

    /// Writes the archive; what is at `path` is whole at any time.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut layer = Vec::new();
        for (name, content) in &self.files {
            let (mode, kind, data): (_, _, &[u8]) = match content {
                Content::Program(data) => (0o755, b'0', data),
                Content::Data(data) => (0o644, b'0', data),
                Content::Directory => (0o755, b'5', &[]),
            };
            entry(&mut layer, name, mode, kind, data)?;
        }
        finish(&mut layer)?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"],
                "User": self.user.to_string(),
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
        });
        let config = serde_json::to_vec(&config)?;
        let name = format!("{}.json", sha256(&config));
        let manifest = json!([{"Config": name, "RepoTags": [self.image], "Layers": ["layer.tar"]}]);

        let temporary = path.with_extension("part");
        let file =
            File::create(&temporary).with_context(|| format!("failed to write {}", temporary.display()))?;
        let mut out = BufWriter::new(file);
        entry(&mut out, "manifest.json", 0o644, b'0', &serde_json::to_vec(&manifest)?)?;
        entry(&mut out, &name, 0o644, b'0', &config)?;
        entry(&mut out, "layer.tar", 0o644, b'0', &layer)?;
        finish(&mut out)?;
        out.flush()?;
        std::fs::rename(&temporary, path)?;
        Ok(())
    }
}

/// This machine's architecture, by Go's name.
fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn sha256(data: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, data);
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _: std::fmt::Result = write!(text, "{byte:02x}");
        text
    })
}

/// One entry of a tar, with the header of POSIX.1-1988 (ustar).
fn entry(out: &mut impl Write, name: &str, mode: u32, kind: u8, data: &[u8]) -> Result<()> {
    ensure!(name.len() <= 100, "too long for an image built here: {name}");
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", data.len()));
    // Always the same time, so that the same files give the same image.
    put(136, "00000000000");
    put(148, "        ");
    put(257, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.write_all(&header)?;
    out.write_all(data)?;
    let padding = data.len().next_multiple_of(512) - data.len();
    out.write_all(&[0; 512][..padding])?;
    Ok(())
}

fn finish(out: &mut impl Write) -> Result<()> {
    Ok(out.write_all(&[0; 1024])?)
}
