//! Which version of a kind the API server serves: a definition that something else installed may serve an
//! older one only.
//!
//! Entry point: [`served`].

use ambit_kube::error::is_not_found;
use kube::Client;

/// What the API server says about a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// This version is served, and can be read.
    Version(&'static str),
    /// Only these are served, and none can be read.
    Unreadable(Vec<String>),
    /// The kind is not installed.
    Absent,
}

/// The first of the `readable` versions that is served.
pub(crate) async fn served(
    client: &Client,
    group: &str,
    plural: &str,
    readable: &[&'static str],
) -> kube::Result<Served> {
    let groups = client.list_api_groups().await?;
    let Some(group) = groups.groups.into_iter().find(|known| known.name == group) else {
        return Ok(Served::Absent);
    };
    let mut versions = Vec::new();
    for version in group.versions {
        match client.list_api_group_resources(&version.group_version).await {
            Ok(list) if list.resources.iter().any(|resource| resource.name == plural) => {
                versions.push(version.version);
            }
            Ok(_) => {}
            // Gone since the list of groups.
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let best = readable.iter().find(|version| versions.iter().any(|served| served == *version));
    Ok(match best {
        Some(version) => Served::Version(version),
        None if versions.is_empty() => Served::Absent,
        None => Served::Unreadable(versions),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::kubernetes::fake_api::FakeApi;

    const GROUP: &str = "security.istio.io";

    /// An API server that serves `policies` under some of a group's versions.
    fn serving(versions: &[(&str, bool)]) -> FakeApi {
        let api = FakeApi::default();
        let named = |version: &str| json!({"groupVersion": format!("{GROUP}/{version}"), "version": version});
        let listed: Vec<Value> = versions.iter().map(|(version, _)| named(version)).collect();
        let mut groups = vec![json!({"name": "apps", "versions": [named("v1")]})];
        if !listed.is_empty() {
            groups.push(json!({"name": GROUP, "versions": listed}));
        }
        api.put("/apis", json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}));
        for (version, has) in versions {
            let policies = json!({
                "name": "policies", "singularName": "policy", "namespaced": true, "kind": "Policy",
                "verbs": ["list"],
            });
            let list = json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{version}"),
                "resources": if *has { vec![policies] } else { Vec::new() },
            });
            api.put(&format!("/apis/{GROUP}/{version}"), list);
        }
        api
    }

    #[tokio::test]
    async fn the_first_readable_version_that_is_served_is_taken() {
        type Row<'a> = (&'a str, &'a [(&'a str, bool)], Served);
        let unreadable =
            |versions: &[&str]| Served::Unreadable(versions.iter().map(ToString::to_string).collect());
        let rows: [Row<'_>; 6] = [
            ("both", &[("v1beta1", true), ("v1", true)], Served::Version("v1")),
            ("only the older one", &[("v1beta1", true)], Served::Version("v1beta1")),
            (
                "the newer one of other kinds only",
                &[("v1", false), ("v1beta1", true)],
                Served::Version("v1beta1"),
            ),
            ("only unknown ones", &[("v2", true), ("v3", true)], unreadable(&["v2", "v3"])),
            ("no such kind in the group", &[("v1", false)], Served::Absent),
            ("no such group", &[], Served::Absent),
        ];
        for (name, versions, expected) in rows {
            let client = serving(versions).client();
            let found = served(&client, GROUP, "policies", &["v1", "v1beta1"]).await.unwrap();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn a_failed_request_is_no_absence() {
        let api = serving(&[("v1", true)]);
        api.put(&format!("/apis/{GROUP}/v1"), 500.into());
        served(&api.client(), GROUP, "policies", &["v1"]).await.unwrap_err();
    }
}
