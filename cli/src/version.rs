//! `ambit version`: the versions of this program and of Ambit's pods.

use std::collections::BTreeMap;

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt as _};

use crate::cluster::{ALL_PODS, Access, NAME, VERSION};
use crate::error::{Error, api};
use crate::facts;
use crate::output::outln;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print only the version of this program.
    #[arg(long)]
    client: bool,
}

pub(crate) async fn run(access: &Access, options: &Options) -> Result<(), Error> {
    outln!("ambit {}", env!("CARGO_PKG_VERSION"))?;
    if options.client {
        return Ok(());
    }
    let client = access.connect().await?;
    outln!("Kubernetes {}", server(&client).await?.text)?;
    let pods = facts::pods(&client, &access.ambit_namespace, ALL_PODS).await?;
    if pods.is_empty() {
        outln!("no pod of Ambit runs in {}", access.ambit_namespace)?;
    }
    for ((component, version), count) in versions(&pods) {
        outln!("{component} {version} ({count} pods)")?;
    }
    Ok(())
}

/// The API server's version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    /// The `34` of `v1.34.1`.
    pub(crate) minor: u32,
    /// `v1.34.1`.
    pub(crate) text: String,
}

pub(crate) async fn server(client: &Client) -> Result<Server, Error> {
    let info = client.apiserver_version().await.map_err(api("read the version of the API server"))?;
    Ok(Server { minor: leading(&info.minor), text: info.git_version })
}

/// The number at the beginning of a minor version: some providers report `34+`.
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
