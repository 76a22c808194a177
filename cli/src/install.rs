//! `ambit install`: server-side apply of the CRDs, then of everything else, then a wait until it is ready.

use std::time::Duration;

use clap::Args;
use kube::Client;
use kube::api::{Patch, PatchParams};

use crate::cluster::{Access, SYSTEM, api_of};
use crate::error::{Error, api};
use crate::manifests::{self, MANAGER, Manifest};
use crate::output::outln;
use crate::wait::{self, Look};
use crate::{facts, version};

/// The oldest minor version of Kubernetes with the admission policy that keeps node agents to their own node.
const OLDEST_MINOR: u32 = 30;

/// How to install.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print what would be applied, without contacting a cluster.
    #[arg(long)]
    dry_run: bool,
    /// How long to wait until everything is ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

pub(crate) async fn run(access: &Access, options: &Options) -> Result<(), Error> {
    ensure_default(access)?;
    let (definitions, mesh) = (manifests::definitions()?, manifests::mesh()?);
    if options.dry_run {
        for manifest in definitions.iter().chain(&mesh) {
            let unwritable = |source| Error::Document { document: manifest.title(), source };
            outln!("---\n{}", serde_yaml_ng::to_string(&manifest.object).map_err(unwritable)?.trim_end())?;
        }
        return Ok(());
    }
    let client = access.connect().await?;
    let server = version::server(&client).await?;
    if server.minor < OLDEST_MINOR {
        let reason = format!("Kubernetes {}: Ambit needs 1.{OLDEST_MINOR} or later", server.text);
        return Err(Error::Refused(reason));
    }
    refuse_others(&client, "helm upgrade").await?;
    let timeout = Duration::from_secs(options.timeout);
    define(&client, &definitions, timeout).await?;
    apply_all(&client, &mesh).await?;
    outln!("Waiting until Ambit is ready")?;
    wait::until("get Ambit ready", timeout, async || {
        let missing = facts::running(&client, SYSTEM).await?.missing();
        Ok(Look::for_missing(missing))
    })
    .await?;
    outln!("Ambit {} is ready. To enrol a namespace: ambit enrol NAMESPACE", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}

/// The embedded manifests are rendered for one namespace.
pub(crate) fn ensure_default(access: &Access) -> Result<(), Error> {
    if access.ambit_namespace == SYSTEM {
        return Ok(());
    }
    let reason = format!(
        "--ambit-namespace {}: this program installs the chart's defaults into {SYSTEM}; for anything else \
         use Helm: deploy/chart",
        access.ambit_namespace
    );
    Err(Error::Refused(reason))
}

/// Refuses where Helm manages the installation (two tools would undo each other's changes) and where another
/// installation exists (both would act on the same nodes).
pub(crate) async fn refuse_others(client: &Client, instead: &str) -> Result<(), Error> {
    for (kind, found) in facts::installations(client).await? {
        let namespace = found.namespace.as_deref().unwrap_or_default();
        let title = format!("{kind} {}", found.name.as_deref().unwrap_or_default());
        if let Some(release) = manifests::helm_release(&found) {
            return Err(Error::Refused(format!(
                "{title} in {namespace} belongs to the Helm release {release}: use `{instead} -n {namespace}`"
            )));
        }
        if namespace != SYSTEM {
            return Err(Error::Refused(format!(
                "{title} in {namespace} is of another installation of Ambit: a cluster can have one"
            )));
        }
    }
    Ok(())
}

/// Applies the CRDs that are Ambit's, leaves others' unchanged, and waits until all are established.
async fn define(client: &Client, definitions: &[Manifest], timeout: Duration) -> Result<(), Error> {
    for definition in definitions {
        let found = facts::get(client, definition).await?;
        if found.is_some_and(|found| !manifests::is_ambits(&found)) {
            outln!("{} was not installed by Ambit: left unchanged", definition.name())?;
        } else {
            apply(client, definition).await?;
        }
    }
    wait::until("define its kinds", timeout, async || {
        let mut missing = Vec::new();
        for definition in definitions {
            let problem = match facts::get(client, definition).await? {
                Some(found) => manifests::problem(definition, &found),
                None => Some("missing".to_owned()),
            };
            missing.extend(problem.map(|problem| format!("{}: {problem}", definition.title())));
        }
        Ok(Look::for_missing(missing))
    })
    .await?;
    outln!("{} CRDs established", definitions.len())?;
    Ok(())
}

async fn apply_all(client: &Client, mesh: &[Manifest]) -> Result<(), Error> {
    for manifest in mesh {
        // A namespace that existed before is not adopted, and `ambit uninstall` will not delete it.
        if manifest.kind() == "Namespace"
            && let Some(found) = facts::get(client, manifest).await?
            && !manifests::is_ours(&found)
        {
            outln!("Namespace {} exists already: left unchanged", manifest.name())?;
            continue;
        }
        apply(client, manifest).await?;
    }
    outln!("{} objects applied", mesh.len())?;
    Ok(())
}

async fn apply(client: &Client, manifest: &Manifest) -> Result<(), Error> {
    // By force: the embedded manifests win over changes made by others.
    let parameters = PatchParams::apply(MANAGER).force();
    let applied =
        api_of(client, manifest).patch(manifest.name(), &parameters, &Patch::Apply(&manifest.object)).await;
    applied.map(drop).map_err(api(format!("apply {}", manifest.title())))
}
