//! `ambit version`, and which versions run.

use std::collections::BTreeMap;

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt as _};

use crate::cluster::{ALL_PODS, Access, VERSION};
use crate::error::{Error, api};
use crate::facts;

/// The name of what a pod runs.
const NAME: &str = "app.kubernetes.io/name";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Of this program alone.
    #[arg(long)]
    client: bool,
}

pub(crate) async fn run(access: &Access, options: &Options) -> Result<(), Error> {
    say!("ambit {}", env!("CARGO_PKG_VERSION"))?;
    if options.client {
        return Ok(());
    }
    let client = access.connect().await?;
    say!("Kubernetes {}", server(&client).await?.text)?;
    let pods = facts::pods(&client, &access.ambit_namespace, ALL_PODS).await?;
    if pods.is_empty() {
        say!("nothing runs in {}", access.ambit_namespace)?;
    }
    for ((component, version), count) in versions(&pods) {
        say!("{component} {version} ({count} pods)")?;
    }
    Ok(())
}

/// The API server's version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    /// Of 1.
    pub(crate) minor: u32,
    pub(crate) text: String,
}

pub(crate) async fn server(client: &Client) -> Result<Server, Error> {
    let info = client.apiserver_version().await.map_err(api("asking the API server for its version"))?;
    Ok(Server { minor: leading(&info.minor), text: info.git_version })
}

/// The number that a minor version begins with: some are `34+`.
fn leading(minor: &str) -> u32 {
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// How many pods run each version of each component.
pub(crate) fn versions(pods: &[Pod]) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let label = |name: &str| pod.labels().get(name).cloned().unwrap_or_else(|| "unknown".to_owned());
        *counts.entry((label(NAME), label(VERSION))).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn minor_versions() {
        for (minor, expected) in [("34", 34), ("29+", 29), ("", 0)] {
            assert_eq!(leading(minor), expected, "{minor}");
        }
    }

    #[test]
    fn pods_by_version() {
        let pod = |version: &str, ending: Option<&str>| {
            let labels = json!({ NAME: "ztunnel", VERSION: version });
            let metadata = json!({ "labels": labels, "deletionTimestamp": ending });
            serde_json::from_value::<Pod>(json!({ "metadata": metadata })).unwrap()
        };
        let ending = Some("2026-01-01T00:00:00Z");
        let pods = [pod("1", None), pod("2", None), pod("2", None), pod("0", ending)];
        let counts = versions(&pods);
        let key = |version: &str| ("ztunnel".to_owned(), version.to_owned());
        assert_eq!(counts, [(key("1"), 1), (key("2"), 2)].into());
    }
}
