//! What a lab consists of, as values, and the YAML objects that tell the controller about it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The label that enrols a namespace or pod, or opts it out.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";

/// A namespace of the cluster.
#[derive(Clone, Debug)]
pub struct NamespaceSpec {
    pub name: String,
    pub labels: BTreeMap<String, String>,
}

impl NamespaceSpec {
    /// A namespace outside the mesh.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), labels: BTreeMap::new() }
    }

    /// A namespace whose pods are enrolled.
    pub fn mesh(name: &str) -> Self {
        Self::new(name).label(MODE_LABEL, "ambient")
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn yaml(&self) -> String {
        let Self { name, labels } = self;
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: \"{name}\"\n{}",
            map("  labels:", labels)
        )
    }
}

/// A pod: a network namespace on a node, with addresses of both families.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub namespace: String,
    pub name: String,
    pub node: usize,
    pub account: String,
    pub labels: BTreeMap<String, String>,
    pub ready: bool,
    /// Ports that kubelet-like probes reach under any policy.
    pub probes: Vec<u16>,
    /// Named container ports.
    pub ports: BTreeMap<String, u16>,
    pub annotations: BTreeMap<String, String>,
    /// The mesh counts on it as its labels say, but no daemon takes care of it: a test plays that part.
    pub unattended: bool,
}

impl PodSpec {
    /// A pod `namespace/name` on the first node, with the label `app: name` and a service account of its own
    /// name.
    ///
    /// # Panics
    /// When the name has no `/`.
    pub fn new(name: &str) -> Self {
        let (namespace, name) = name.split_once('/').expect("a pod is named namespace/name");
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: 0,
            account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            ready: true,
            probes: Vec::new(),
            ports: BTreeMap::new(),
            annotations: BTreeMap::new(),
            unattended: false,
        }
    }

    /// On which node it runs.
    #[must_use]
    pub fn node(mut self, node: usize) -> Self {
        self.node = node;
        self
    }

    /// Its service account.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Opts the pod out of the mesh although its namespace is in it.
    #[must_use]
    pub fn legacy(self) -> Self {
        self.label(MODE_LABEL, "none")
    }

    /// The pod exists but is not ready.
    #[must_use]
    pub fn unready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// Declares a readiness probe on a port.
    #[must_use]
    pub fn probe(mut self, port: u16) -> Self {
        self.probes.push(port);
        self
    }

    /// Declares a named port.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.ports.insert(name.to_owned(), port);
        self
    }

    /// The mesh counts on it, but it is not enrolled: a test plays its daemon.
    #[must_use]
    pub fn unattended(mut self) -> Self {
        self.unattended = true;
        self
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its name on the wire.
    pub fn uid(&self) -> String {
        format!("Kubernetes//Pod/{}/{}", self.namespace, self.name)
    }

    /// Whether it is enrolled, given its namespace's labels.
    pub fn enrolled(&self, namespace: Option<&NamespaceSpec>) -> bool {
        let mode = self.labels.get(MODE_LABEL).or_else(|| namespace.and_then(|n| n.labels.get(MODE_LABEL)));
        mode.is_some_and(|mode| mode == "ambient" || mode == "ambit")
    }

    pub(crate) fn yaml(&self, node: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> String {
        let Self { namespace, name, account, ready, .. } = self;
        let mut out = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: \"{namespace}\"\n  name: \"{name}\"\n{}{}",
            map("  labels:", &self.labels),
            map("  annotations:", &self.annotations)
        );
        let _ = write!(
            out,
            "spec:\n  nodeName: {node}\n  serviceAccountName: \"{account}\"\n  containers:\n    - name: app\n"
        );
        if !self.ports.is_empty() {
            out.push_str("      ports:\n");
            for (name, port) in &self.ports {
                let _ = writeln!(out, "        - {{name: {name}, containerPort: {port}, protocol: TCP}}");
            }
        }
        for (kind, port) in ["readinessProbe", "livenessProbe", "startupProbe"].iter().zip(&self.probes) {
            let _ = write!(out, "      {kind}:\n        tcpSocket: {{port: {port}}}\n");
        }
        let ready = if *ready { "True" } else { "False" };
        let _ = write!(
            out,
            "status:\n  phase: Running\n  podIP: {v4}\n  podIPs:\n    - ip: {v4}\n    - ip: \"{v6}\"\n  \
             conditions:\n    - {{type: Ready, status: \"{ready}\"}}\n"
        );
        out
    }
}

/// A service with a cluster address of each family.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    pub namespace: String,
    pub name: String,
    pub selector: BTreeMap<String, String>,
    /// Port, and target port: a number or a name.
    pub ports: Vec<(u16, String)>,
    /// Further fields of its `spec`.
    pub fields: BTreeMap<String, String>,
    /// `appProtocol` of its ports.
    pub protocol: Option<String>,
}

impl ServiceSpec {
    /// A service `namespace/name` for the pods labelled `app: name`.
    ///
    /// # Panics
    /// When the name has no `/`.
    pub fn new(name: &str) -> Self {
        let (namespace, name) = name.split_once('/').expect("a service is named namespace/name");
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            selector: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            ports: Vec::new(),
            fields: BTreeMap::new(),
            protocol: None,
        }
    }

    /// What its ports speak.
    #[must_use]
    pub fn protocol(mut self, name: &str) -> Self {
        self.protocol = Some(name.to_owned());
        self
    }

    /// Selects the pods with `app: value` instead.
    #[must_use]
    pub fn selects(self, value: &str) -> Self {
        self.selects_label("app", value)
    }

    /// Selects the pods with this label instead.
    #[must_use]
    pub fn selects_label(mut self, key: &str, value: &str) -> Self {
        self.selector = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        self
    }

    /// Sets a field of its `spec`, as `sessionAffinity`.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a port that leads to a port of the pods.
    #[must_use]
    pub fn port(self, port: u16, target: u16) -> Self {
        self.named_port(port, &target.to_string())
    }

    /// Adds a port that leads to a named port of the pods.
    #[must_use]
    pub fn named_port(mut self, port: u16, target: &str) -> Self {
        self.ports.push((port, target.to_owned()));
        self
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The name that clients resolve.
    pub fn hostname(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }

    pub(crate) fn yaml(&self, addresses: &[IpAddr]) -> String {
        let Self { namespace, name, .. } = self;
        let mut out = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: \"{namespace}\"\n  name: \
             \"{name}\"\nspec:\n{}",
            map("  selector:", &self.selector)
        );
        if let Some(first) = addresses.first() {
            let _ = write!(out, "  clusterIP: \"{first}\"\n  clusterIPs:\n");
            for address in addresses {
                let _ = writeln!(out, "    - \"{address}\"");
            }
        }
        for (name, value) in &self.fields {
            let _ = writeln!(out, "  {name}: {value}");
        }
        out.push_str("  ports:\n");
        for (port, target) in &self.ports {
            let said =
                self.protocol.as_ref().map(|name| format!(", appProtocol: {name}")).unwrap_or_default();
            let _ = writeln!(
                out,
                "    - {{name: p{port}, port: {port}, targetPort: {target}, protocol: TCP{said}}}"
            );
        }
        out
    }
}

/// A mapping as indented YAML, or nothing when it is empty.
fn map(head: &str, entries: &BTreeMap<String, String>) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let indent = " ".repeat(head.len() - head.trim_start().len() + 2);
    let mut out = format!("{head}\n");
    for (key, value) in entries {
        let _ = writeln!(out, "{indent}{key}: \"{value}\"");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{NamespaceSpec, PodSpec};

    #[test]
    fn pod_enrolment_follows_labels() {
        let mesh = NamespaceSpec::mesh("shop");
        let plain = NamespaceSpec::new("shop");
        let rows = [
            ("namespace enrols", PodSpec::new("shop/a"), &mesh, true),
            ("pod opts out", PodSpec::new("shop/a").legacy(), &mesh, false),
            ("plain namespace", PodSpec::new("shop/a"), &plain, false),
            ("pod enrols itself", PodSpec::new("shop/a").label(super::MODE_LABEL, "ambit"), &plain, true),
        ];
        for (name, pod, namespace, expected) in rows {
            assert_eq!(pod.enrolled(Some(namespace)), expected, "{name}");
        }
    }
}
