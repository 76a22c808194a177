//! `ambit install`: definitions, then everything else, by server-side apply, until it is ready.

use std::time::Duration;

use clap::Args;
use kube::Client;
use kube::api::{Patch, PatchParams};

use crate::cluster::{Access, SYSTEM, part};
use crate::error::{Error, api};
use crate::manifests::{self, MANAGER, Manifest};
use crate::wait::{self, Look};
use crate::{facts, version};

/// What is applied needs it: an admission policy keeps node agents to their own node. (The chart leaves that
/// out for 1.29.)
const OLDEST: u32 = 30;

/// How to install.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print what would be applied, and ask no cluster.
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
            let unwritable = |source| Error::Document { what: manifest.title(), source };
            say!("---\n{}", serde_yaml_ng::to_string(&manifest.object).map_err(unwritable)?.trim_end())?;
        }
        return Ok(());
    }
    let client = access.connect().await?;
    let server = version::server(&client).await?;
    if server.minor < OLDEST {
        let why = format!(
            "Kubernetes {}: `ambit install` needs 1.{OLDEST}; the Helm chart installs on 1.29 too",
            server.text
        );
        return Err(Error::Refused(why));
    }
    refuse_others(&client, "helm upgrade").await?;
    let timeout = Duration::from_secs(options.timeout);
    define(&client, &definitions, timeout).await?;
    apply_all(&client, &mesh).await?;
    say!("Waiting until it is ready")?;
    wait::until("ready", timeout, async || {
        let missing = facts::running(&client, SYSTEM).await?.missing();
        Ok(if missing.is_empty() { Look::Reached } else { Look::Missing(missing) })
    })
    .await?;
    say!("Ambit {} is ready. Put a namespace in the mesh: ambit enrol NAMESPACE", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}

/// The manifests are those of one namespace.
pub(crate) fn ensure_default(access: &Access) -> Result<(), Error> {
    if access.ambit_namespace == SYSTEM {
        return Ok(());
    }
    let why = format!(
        "this installs what the chart renders with its defaults, into {SYSTEM}; for anything else there is \
         Helm: deploy/chart"
    );
    Err(Error::Refused(why))
}

/// Two tools that each think an installation theirs would undo what the other does, and two installations
/// would share their nodes.
pub(crate) async fn refuse_others(client: &Client, instead: &str) -> Result<(), Error> {
    for (kind, there) in facts::installations(client).await? {
        let namespace = there.namespace.as_deref().unwrap_or_default();
        let title = format!("{kind} {}", there.name.as_deref().unwrap_or_default());
        if let Some(release) = manifests::helm_release(&there) {
            return Err(Error::Refused(format!(
                "{title} in {namespace} is of the Helm release {release}: use `{instead} -n {namespace}`"
            )));
        }
        if namespace != SYSTEM {
            return Err(Error::Refused(format!(
                "{title} in {namespace} is of another installation of Ambit: a cluster has one"
            )));
        }
    }
    Ok(())
}

/// Applies the definitions that are Ambit's, leaves others' alone, and waits until all are in use.
async fn define(client: &Client, definitions: &[Manifest], timeout: Duration) -> Result<(), Error> {
    for definition in definitions {
        let there = facts::get(client, definition).await?;
        if there.is_some_and(|there| !manifests::is_ambits(&there)) {
            say!("{} is somebody else's: left as it is", definition.name())?;
        } else {
            apply(client, definition).await?;
        }
    }
    wait::until("defined", timeout, async || {
        let mut missing = Vec::new();
        for definition in definitions {
            let trouble = match facts::get(client, definition).await? {
                Some(there) => manifests::trouble(definition, &there),
                None => Some("is not there".to_owned()),
            };
            missing.extend(trouble.map(|trouble| format!("{}: {trouble}", definition.title())));
        }
        Ok(if missing.is_empty() { Look::Reached } else { Look::Missing(missing) })
    })
    .await?;
    say!("{} definitions are in use", definitions.len())?;
    Ok(())
}

async fn apply_all(client: &Client, mesh: &[Manifest]) -> Result<(), Error> {
    for manifest in mesh {
        // One that was there before us stays whoever's it is, and `ambit uninstall` will not delete it.
        if manifest.kind() == "Namespace"
            && let Some(there) = facts::get(client, manifest).await?
            && !manifests::is_ours(&there)
        {
            say!("Namespace {} was there already: left as it is", manifest.name())?;
            continue;
        }
        apply(client, manifest).await?;
    }
    say!("{} objects applied", mesh.len())?;
    Ok(())
}

async fn apply(client: &Client, manifest: &Manifest) -> Result<(), Error> {
    // By force: what is installed is to be what this program brings, whoever changed it since.
    let parameters = PatchParams::apply(MANAGER).force();
    let applied =
        part(client, manifest).patch(manifest.name(), &parameters, &Patch::Apply(&manifest.object)).await;
    applied.map(drop).map_err(api(format!("applying {}", manifest.title())))
}
