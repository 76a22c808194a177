//! What the ConfigMap of `spec.infrastructure.parametersRef` may say: [`Parameters::read`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// The key of the ConfigMap.
const KEY: &str = "waypoint.yaml";

/// How a waypoint is deployed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Parameters {
    /// How many pods; one if absent.
    pub(super) replicas: Option<u32>,
    /// Of the container.
    pub(super) resources: Option<Value>,
    pub(super) node_selector: Option<BTreeMap<String, String>>,
    pub(super) tolerations: Option<Vec<Value>>,
    /// As many pods as the load asks for.
    pub(super) autoscaling: Option<Autoscaling>,
}

/// A HorizontalPodAutoscaler.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Autoscaling {
    pub(super) min_replicas: u32,
    pub(super) max_replicas: u32,
    /// Of the CPU that is requested, in percent.
    pub(super) cpu_utilization: u32,
}

impl Parameters {
    /// Reads the data of the ConfigMap.
    pub(super) fn read(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let text = data.get(KEY).ok_or_else(|| format!("it has no key {KEY}"))?;
        let read: Self = serde_yaml_ng::from_str(text).map_err(|error| format!("{KEY}: {error}"))?;
        if let Some(autoscaling) = &read.autoscaling {
            let Autoscaling { min_replicas, max_replicas, cpu_utilization } = autoscaling;
            if read.replicas.is_some() {
                return Err(format!("{KEY}: set either replicas or autoscaling, not both"));
            }
            if !(1..=*max_replicas).contains(min_replicas) {
                return Err(format!(
                    "{KEY}: autoscaling.minReplicas: {min_replicas} is not in 1 to {max_replicas}"
                ));
            }
            if !(1..=100).contains(cpu_utilization) {
                return Err(format!(
                    "{KEY}: autoscaling.cpuUtilization: {cpu_utilization} is not in 1 to 100"
                ));
            }
        }
        if let Some(resources) = read.resources.as_ref().filter(|resources| !resources.is_object()) {
            return Err(format!("{KEY}: resources: {resources} is not a mapping"));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Parameters, String> {
        Parameters::read(&BTreeMap::from([(KEY.to_owned(), text.to_owned())]))
    }

    #[test]
    fn mistakes_are_named_with_their_field() {
        let rows = [
            ("an unknown field", "replica: 2", "unknown field `replica`"),
            ("not a number", "replicas: many", "replicas"),
            (
                "both",
                "{replicas: 2, autoscaling: {minReplicas: 1, maxReplicas: 2, cpuUtilization: 80}}",
                "either",
            ),
            ("no pod", "{autoscaling: {minReplicas: 0, maxReplicas: 2, cpuUtilization: 80}}", "minReplicas"),
            (
                "more than the most",
                "{autoscaling: {minReplicas: 3, maxReplicas: 2, cpuUtilization: 80}}",
                "3 is not",
            ),
            (
                "over 100 %",
                "{autoscaling: {minReplicas: 1, maxReplicas: 2, cpuUtilization: 120}}",
                "120 is not",
            ),
            ("no mapping", "resources: much", "resources"),
        ];
        for (name, text, expected) in rows {
            let error = read(text).expect_err(name);
            assert!(error.contains(expected), "{name}: {error}");
        }
        assert!(Parameters::read(&BTreeMap::new()).is_err(), "no key");
    }

    #[test]
    fn everything_may_be_said() {
        let text = "{replicas: 3, resources: {limits: {memory: 1Gi}}, nodeSelector: {disk: ssd}, \
                    tolerations: [{operator: Exists}]}";
        let read = read(text).expect("valid");
        assert_eq!(read.replicas, Some(3));
        assert_eq!(read.resources.expect("resources")["limits"]["memory"], "1Gi");
    }
}
