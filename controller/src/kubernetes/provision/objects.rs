//! The objects of a waypoint: [`Provisioning::objects`].

use std::collections::BTreeMap;

use ambit_core::inbound::HBONE_PORT;
use serde_json::{Map, Value, json};

use super::super::keeper::BUNDLE;
use super::parameters::Parameters;
use crate::config::kubernetes::{Settings, WaypointImage};

/// On a Gateway: whether its waypoint's objects were applied.
pub(super) const CONDITION: &str = "ambit.dev/Provisioned";
/// The label by which Gateway API has the objects of a Gateway found; it selects the pods.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// A waypoint's user and group.
const USER: u32 = 65532;
/// How long requests may take to end.
const DRAIN_SECONDS: u32 = 20;
/// Between the endpoint's removal and the signal: clients learn of it.
const PAUSE_SECONDS: u32 = 3;

/// What is the same for all waypoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Provisioning {
    pub(crate) image: WaypointImage,
    /// The cluster's name in the uids of workloads.
    pub(crate) cluster: String,
}

/// A Gateway, and what belongs into its waypoint's objects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waypoint<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
    /// `spec.infrastructure`.
    pub(super) infrastructure: &'a Value,
    /// The mesh's roots, as PEM.
    pub(super) roots: &'a str,
    pub(super) parameters: &'a Parameters,
}

impl Provisioning {
    /// The objects to be applied, in this order.
    pub(super) fn objects(&self, settings: &Settings, of: &Waypoint<'_>) -> Vec<Value> {
        let name = of.name;
        let mut objects = vec![
            of.object("v1", "ServiceAccount", name, json!({"automountServiceAccountToken": false})),
            of.object("v1", "ConfigMap", &of.config_name(), json!({"data": of.config(settings)})),
            of.object("v1", "Service", name, json!({"spec": of.service()})),
            of.object("apps/v1", "Deployment", name, json!({"spec": self.deployment(settings, of)})),
        ];
        let minimum = of.parameters.autoscaling.as_ref().map(|it| it.min_replicas);
        if minimum.or(of.parameters.replicas).unwrap_or(1) > 1 {
            // With a single pod it would keep that on its node, and the node from being drained.
            let spec = json!({"minAvailable": 1, "selector": {"matchLabels": of.selector()}});
            objects.push(of.object("policy/v1", "PodDisruptionBudget", name, json!({"spec": spec})));
        }
        if let Some(autoscaling) = &of.parameters.autoscaling {
            let cpu = json!({"type": "Utilization", "averageUtilization": autoscaling.cpu_utilization});
            let spec = json!({
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "minReplicas": autoscaling.min_replicas,
                "maxReplicas": autoscaling.max_replicas,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": cpu}}],
            });
            let kind = "HorizontalPodAutoscaler";
            objects.push(of.object("autoscaling/v2", kind, name, json!({"spec": spec})));
        }
        objects
    }

    fn deployment(&self, settings: &Settings, of: &Waypoint<'_>) -> Value {
        let mut labels = of.labels();
        for (label, value) in [("istio.io/dataplane-mode", "none"), ("sidecar.istio.io/inject", "false")] {
            labels.insert(label.to_owned(), json!(value));
        }
        let mut annotations = of.written("annotations");
        annotations.insert("prometheus.io/scrape".to_owned(), json!("true"));
        annotations.insert("prometheus.io/port".to_owned(), json!("15020"));
        let token = json!({
            "serviceAccountToken": {
                "path": "token", "audience": settings.token_audience, "expirationSeconds": 43200,
            },
        });
        let mut pod = json!({
            "serviceAccountName": of.name,
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": PAUSE_SECONDS + DRAIN_SECONDS + 7,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [self.container(of)],
            "volumes": [
                {"name": "config", "configMap": {"name": of.config_name()}},
                {"name": "token", "projected": {"defaultMode": 0o440, "sources": [token]}},
            ],
        });
        let parameters = of.parameters;
        let secrets: Vec<_> = self.image.pull_secrets.iter().map(|name| json!({"name": name})).collect();
        let optional = [
            ("nodeSelector", parameters.node_selector.as_ref().map(|it| json!(it))),
            ("tolerations", parameters.tolerations.as_ref().map(|it| json!(it))),
            ("imagePullSecrets", (!secrets.is_empty()).then(|| json!(secrets))),
        ];
        for (field, value) in optional {
            if let Some(value) = value {
                pod[field] = value;
            }
        }
        let mut spec = json!({
            "selector": {"matchLabels": of.selector()},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod},
        });
        // Where it scales by itself, the number of pods is not ours.
        if parameters.autoscaling.is_none() {
            spec["replicas"] = json!(parameters.replicas.unwrap_or(1));
        }
        spec
    }

    fn container(&self, of: &Waypoint<'_>) -> Value {
        let field =
            |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let workload = format!("{}//Pod/$(POD_NAMESPACE)/$(POD_NAME)", self.cluster);
        let requests = json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}});
        json!({
            "name": "waypoint",
            "image": self.image.image,
            "imagePullPolicy": self.image.pull_policy,
            "args": [
                "run", "--config", "/etc/ambit/waypoint.yaml", "--workload", workload,
                "--node", "$(NODE_NAME)",
            ],
            "env": [
                field("NODE_NAME", "spec.nodeName"),
                field("POD_NAME", "metadata.name"),
                field("POD_NAMESPACE", "metadata.namespace"),
            ],
            "ports": [
                {"name": "hbone", "containerPort": HBONE_PORT},
                {"name": "http-metrics", "containerPort": 15020},
                {"name": "readiness", "containerPort": 15021},
            ],
            "readinessProbe": {
                "httpGet": {"path": "/healthz/ready", "port": "readiness"},
                "periodSeconds": 1,
            },
            "lifecycle": {"preStop": {"sleep": {"seconds": PAUSE_SECONDS}}},
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "resources": of.parameters.resources.clone().unwrap_or(requests),
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/ambit", "readOnly": true},
                {"name": "token", "mountPath": "/var/run/ambit/token", "readOnly": true},
            ],
        })
    }
}

impl Waypoint<'_> {
    fn object(&self, version: &str, kind: &str, name: &str, rest: Value) -> Value {
        let owner = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "name": self.name, "uid": self.uid,
            "controller": true, "blockOwnerDeletion": false,
        });
        let mut object = json!({
            "apiVersion": version,
            "kind": kind,
            "metadata": {
                "namespace": self.namespace,
                "name": name,
                "labels": self.labels(),
                "annotations": self.written("annotations"),
                "ownerReferences": [owner],
            },
        });
        if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
            object.extend(rest);
        }
        object
    }

    fn config_name(&self) -> String {
        format!("{}-waypoint", self.name)
    }

    fn selector(&self) -> BTreeMap<&'static str, &str> {
        BTreeMap::from([(GATEWAY_NAME, self.name)])
    }

    /// Those that the Gateway wants, and ours, which win.
    fn labels(&self) -> Map<String, Value> {
        let mut labels = self.written("labels");
        labels.insert(GATEWAY_NAME.to_owned(), json!(self.name));
        labels.insert("app.kubernetes.io/managed-by".to_owned(), json!("ambit"));
        labels
    }

    fn written(&self, field: &str) -> Map<String, Value> {
        self.infrastructure[field].as_object().cloned().unwrap_or_default()
    }

    fn service(&self) -> Value {
        json!({
            "selector": self.selector(),
            "ports": [
                {"name": "hbone", "port": HBONE_PORT, "targetPort": HBONE_PORT, "protocol": "TCP"},
            ],
        })
    }

    fn config(&self, settings: &Settings) -> BTreeMap<&'static str, String> {
        let controller = format!("ambit-controller.{}.svc", settings.namespace);
        let (namespace, name) = (self.namespace, self.name);
        let config = json!({
            "service": format!("{namespace}/{name}.{namespace}.svc.cluster.local"),
            "controller": {
                "address": format!("{controller}:15012"),
                "server_name": controller,
                "root_file": format!("/etc/ambit/{BUNDLE}"),
                "token_file": "/var/run/ambit/token/token",
            },
            "drain_timeout_seconds": DRAIN_SECONDS,
            "log": {"format": "json"},
        });
        // JSON is YAML.
        BTreeMap::from([("waypoint.yaml", config.to_string()), (BUNDLE, self.roots.to_owned())])
    }
}

#[cfg(test)]
mod tests {
    use super::super::parameters::Autoscaling;
    use super::*;

    fn objects(infrastructure: &Value, parameters: &Parameters) -> BTreeMap<String, Value> {
        let image = WaypointImage {
            image: "registry/ambit/waypoint:1".to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
            pull_secrets: vec!["secret".to_owned()],
        };
        let provisioning = Provisioning { image, cluster: "Kubernetes".to_owned() };
        let waypoint = Waypoint {
            namespace: "shop",
            name: "gate",
            uid: "u",
            infrastructure,
            roots: "roots",
            parameters,
        };
        let settings = Settings::for_tests();
        let objects = provisioning.objects(&settings, &waypoint);
        objects
            .into_iter()
            .map(|object| (object["kind"].as_str().expect("a kind").to_owned(), object))
            .collect()
    }

    #[test]
    fn a_gateway_owns_what_its_waypoint_needs() {
        let objects = objects(&Value::Null, &Parameters::default());
        let kinds: Vec<&str> = objects.keys().map(String::as_str).collect();
        assert_eq!(kinds, ["ConfigMap", "Deployment", "Service", "ServiceAccount"]);
        for (kind, object) in &objects {
            assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u", "{kind}");
        }
        let pod = &objects["Deployment"]["spec"]["template"]["spec"];
        assert_eq!(pod["serviceAccountName"], "gate", "what bindings expect it to prove");
        assert_eq!(objects["Service"]["spec"]["ports"][0]["port"], HBONE_PORT);
        let config = objects["ConfigMap"]["data"]["waypoint.yaml"].as_str().expect("a file");
        assert!(config.contains("shop/gate.shop.svc.cluster.local"), "{config}");
    }

    #[test]
    fn infrastructure_and_parameters_are_heeded() {
        let infrastructure =
            json!({"labels": {"team": "shop", GATEWAY_NAME: "other"}, "annotations": {"note": "x"}});
        let parameters = Parameters {
            node_selector: Some(BTreeMap::from([("disk".to_owned(), "ssd".to_owned())])),
            autoscaling: Some(Autoscaling { min_replicas: 2, max_replicas: 5, cpu_utilization: 70 }),
            ..Parameters::default()
        };
        let objects = objects(&infrastructure, &parameters);
        let deployment = &objects["Deployment"];
        for metadata in [&deployment["metadata"], &deployment["spec"]["template"]["metadata"]] {
            assert_eq!(metadata["labels"]["team"], "shop");
            assert_eq!(metadata["labels"][GATEWAY_NAME], "gate", "ours win");
            assert_eq!(metadata["annotations"]["note"], "x");
        }
        assert_eq!(deployment["spec"]["replicas"], Value::Null, "the autoscaler's");
        assert_eq!(deployment["spec"]["template"]["spec"]["nodeSelector"]["disk"], "ssd");
        assert_eq!(objects["HorizontalPodAutoscaler"]["spec"]["maxReplicas"], 5);
        assert_eq!(objects["PodDisruptionBudget"]["spec"]["minAvailable"], 1);
    }
}
