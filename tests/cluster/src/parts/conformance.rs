//! The Gateway API's conformance suite and the echo server that it asks: built once, as the other parts are.
//!
//! Entry point: [`conformance`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::generate_simple_self_signed;

use super::go::Go;
use super::tools::{fresh, run};
use super::versions::{ECHO_IMAGE, GATEWAY_API, ISTIO};
use crate::archive::{Archive, Content};

/// The programs of the suite.
#[derive(Clone, Debug)]
pub struct Conformance {
    folder: PathBuf,
}

impl Conformance {
    /// The suite, a Go test.
    pub fn suite(&self) -> PathBuf {
        self.folder.join("suite")
    }

    /// The image of the echo server, under the name that the suite's manifests ask for.
    pub fn echo(&self) -> PathBuf {
        self.folder.join("echo.tar")
    }
}

/// What is needed, in the folder of the parts; builds what is missing.
pub fn conformance(parts: &Path) -> Result<Conformance> {
    let built = Conformance { folder: parts.join("conformance") };
    std::fs::create_dir_all(&built.folder)
        .with_context(|| format!("failed to create {}", built.folder.display()))?;
    if !built.suite().exists() {
        suite(&Go::new(parts)?, &built.suite())?;
    }
    if !built.echo().exists() {
        echo(&Go::new(parts)?, &built.echo())?;
    }
    Ok(built)
}

fn suite(go: &Go, to: &Path) -> Result<()> {
    let inside = fresh(&go.folder.join("build"))?;
    let module = "sigs.k8s.io/gateway-api";
    let text = format!(
        "module ambit.dev/conformance\n\ngo 1.26.0\n\nrequire {module} {GATEWAY_API}\nrequire \
         {module}/conformance {GATEWAY_API}\n"
    );
    std::fs::write(inside.join("go.mod"), text)?;
    let mut command = go.command(&inside);
    command.args(["test", "-c", "-o", "suite", &format!("{module}/conformance")]);
    run("building the conformance suite (about two minutes)", &mut command)?;
    std::fs::rename(inside.join("suite"), to)?;
    Ok(std::fs::remove_dir_all(inside)?)
}

/// The echo server is Istio's; its module asks for versions of others that were not published.
fn echo(go: &Go, to: &Path) -> Result<()> {
    let inside = fresh(&go.folder.join("build"))?;
    let envoy = "github.com/envoyproxy/go-control-plane/envoy";
    let replaced = [
        "istio.io/client-go => istio.io/client-go v1.31.1".to_owned(),
        "istio.io/api => istio.io/api v1.31.1".to_owned(),
        format!("{envoy} => {envoy} v1.40.0"),
    ];
    let text = format!(
        "module ambit.dev/echo\n\ngo 1.26.0\n\nrequire istio.io/istio {ISTIO}\n\nreplace (\n{}\n)\n",
        replaced.join("\n")
    );
    std::fs::write(inside.join("go.mod"), text)?;
    let mut archive = Archive::new(ECHO_IMAGE).entrypoint(&["/usr/local/bin/server"]);
    for program in ["server", "client"] {
        let mut command = go.command(&inside);
        let package = format!("istio.io/istio/pkg/test/echo/cmd/{program}");
        command.args(["build", "-trimpath", "-ldflags", "-s -w", "-o", program, &package]);
        run(&format!("building the echo {program} (some minutes)"), &mut command)?;
        let content = std::fs::read(inside.join(program))?;
        archive = archive.file(&format!("/usr/local/bin/{program}"), Content::Program(content));
    }
    let certificate =
        generate_simple_self_signed(["echo".to_owned()]).context("failed to make a certificate")?;
    archive
        .file("/cert.crt", Content::Data(certificate.cert.pem().into_bytes()))
        .file("/cert.key", Content::Data(certificate.signing_key.serialize_pem().into_bytes()))
        .write(to)?;
    Ok(std::fs::remove_dir_all(inside)?)
}
