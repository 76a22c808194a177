//! The lab: a two-node (or larger) cluster as network namespaces, with a controller, a ztunnel per node, and
//! real pods.
//!
//! It is made by [`Lab::builder`]. Everything a lab makes has its prefix or lies in its directory, and goes
//! when it is dropped.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::capture::Capture;
use crate::daemon::Daemon;
use crate::janitor::Janitor;
use crate::netns::Netns;
use crate::node::Node;
use crate::pod::{Family, Place, Pod};
use crate::spec::{NamespaceSpec, PodSpec, ServiceSpec};
use crate::{http, leaks, metrics::Metrics, network, report, wait};

/// The controller's port for xDS and certificates.
pub(crate) const XDS: u16 = 15012;

/// A running cluster. Dropping it removes everything it made.
#[derive(Debug)]
pub struct Lab {
    /// Begins the name of everything this lab makes outside its directory.
    pub prefix: String,
    /// What travels between the nodes passes here.
    pub underlay: Netns,
    /// A host outside the cluster, which the pods can reach.
    pub outside: Place,
    pub nodes: Vec<Node>,
    pub controller: Daemon,
    pub(crate) control: Netns,
    pub(crate) mesh: bool,
    pub(crate) layout: network::Layout,
    pub(crate) pods: RwLock<BTreeMap<String, Pod>>,
    pub(crate) services: RwLock<BTreeMap<String, (ServiceSpec, [IpAddr; 2])>>,
    pub(crate) namespaces: RwLock<Vec<NamespaceSpec>>,
    pub(crate) per_node: Mutex<Vec<usize>>,
    pub(crate) janitor: Janitor,
    pub(crate) bin: PathBuf,
}

impl Lab {
    /// Where the lab's files are: configuration, objects, logs.
    pub fn dir(&self) -> &Path {
        &self.janitor.dir
    }

    /// The folder that the controller watches.
    pub fn objects(&self) -> PathBuf {
        self.dir().join("objects")
    }

    /// A pod by `namespace/name`.
    ///
    /// # Panics
    /// When there is none: a test's mistake.
    pub fn pod(&self, key: &str) -> Pod {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.get(key).unwrap_or_else(|| panic!("no pod {key} in the lab")).clone()
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Pod> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A service's cluster address by `namespace/name`.
    ///
    /// # Panics
    /// When there is none: a test's mistake.
    pub fn service(&self, key: &str, family: Family) -> IpAddr {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        let (_, addresses) = services.get(key).unwrap_or_else(|| panic!("no service {key} in the lab"));
        match family {
            Family::V4 => addresses[0],
            Family::V6 => addresses[1],
        }
    }

    /// The node on which a pod runs.
    pub fn node_of(&self, pod: &Pod) -> &Node {
        &self.nodes[pod.spec.node]
    }

    /// Writes a file into the controller's folder, whole at once.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        let (draft, file) = (self.dir().join("draft"), self.objects().join(format!("{name}.yaml")));
        std::fs::write(&draft, yaml).with_context(|| format!("failed to write {}", draft.display()))?;
        std::fs::rename(&draft, &file).with_context(|| format!("failed to rename {}", file.display()))
    }

    /// Removes a file from the controller's folder.
    pub fn remove(&self, name: &str) -> Result<()> {
        let file = self.objects().join(format!("{name}.yaml"));
        std::fs::remove_file(&file).with_context(|| format!("failed to remove {}", file.display()))
    }

    /// Adds a service.
    pub fn add_service(&self, service: ServiceSpec) -> Result<()> {
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        let addresses = network::service(services.len());
        self.apply(&format!("service-{}-{}", service.namespace, service.name), &service.yaml(&addresses))?;
        services.insert(service.key(), (service, addresses));
        Ok(())
    }

    /// Adds a pod; enrolled ones are when this returns.
    pub fn add_pod(&self, spec: PodSpec) -> Result<Pod> {
        let node =
            self.nodes.get(spec.node).with_context(|| format!("{} wants node {}", spec.key(), spec.node))?;
        let index = {
            let mut per_node = self.per_node.lock().unwrap_or_else(PoisonError::into_inner);
            per_node[spec.node] += 1;
            per_node[spec.node] - 1
        };
        let name = format!("{}-{}-{}", self.prefix, spec.namespace, spec.name);
        let netns = network::pod(&node.place.netns, &name, spec.node, index, self.layout)?;
        let place = Place::new(
            self.dir(),
            &self.bin,
            netns,
            network::pod_v4(spec.node, index),
            network::pod_v6(spec.node, index),
        );
        let enrolled = {
            let namespaces = self.namespaces.read().unwrap_or_else(PoisonError::into_inner);
            self.mesh
                && !spec.unattended
                && spec.enrolled(namespaces.iter().find(|namespace| namespace.name == spec.namespace))
        };
        self.apply(
            &format!("pod-{}-{}", spec.namespace, spec.name),
            &spec.yaml(&node.name, place.v4, place.v6),
        )?;
        let pod = Pod { spec, place, enrolled };
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(pod.spec.key(), pod.clone());
        if enrolled {
            node.enrol(&pod)?;
        }
        Ok(pod)
    }

    /// Writes a changed description of a pod: readiness, labels. Its namespace and addresses stay.
    pub fn update_pod(&self, spec: PodSpec) -> Result<()> {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        let pod = pods.get_mut(&spec.key()).with_context(|| format!("no pod {}", spec.key()))?;
        let node = &self.nodes[pod.spec.node].name;
        self.apply(
            &format!("pod-{}-{}", spec.namespace, spec.name),
            &spec.yaml(node, pod.place.v4, pod.place.v6),
        )?;
        pod.spec = spec;
        Ok(())
    }

    /// Changes a namespace's labels; pods that it enrols now are when this returns, as if a CNI agent had
    /// seen the label.
    pub fn label_namespace(&self, namespace: NamespaceSpec) -> Result<()> {
        self.apply(&format!("namespace-{}", namespace.name), &namespace.yaml())?;
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        for pod in pods.values_mut().filter(|pod| pod.spec.namespace == namespace.name) {
            if !pod.enrolled && !pod.spec.unattended && pod.spec.enrolled(Some(&namespace)) {
                pod.enrolled = true;
                self.nodes[pod.spec.node].enrol(pod)?;
            }
        }
        let mut namespaces = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        namespaces.retain(|other| other.name != namespace.name);
        namespaces.push(namespace);
        Ok(())
    }

    /// Starts the controller and waits until it listens.
    pub fn start_controller(&self) -> Result<()> {
        self.controller.spawn()?;
        wait::eventually("the controller listens", || {
            self.controller.check()?;
            let address = SocketAddr::new(network::CONTROL.into(), XDS);
            self.control.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))??;
            Ok(())
        })
    }

    /// `GET` on one of the controller's ports.
    pub fn controller_get(&self, port: u16, path: &str) -> Result<String> {
        http::get(&self.control, SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port), path)?.ok()
    }

    /// What the controller counts.
    pub fn controller_metrics(&self) -> Result<Metrics> {
        self.controller_get(15014, "/metrics").map(|text| Metrics::parse(&text))
    }

    /// Where the controller runs.
    pub fn control(&self) -> &Netns {
        &self.control
    }

    /// Records what travels between the nodes.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.underlay)
    }

    /// In a lab without a mesh: makes a service's addresses lead to one pod, by routes and without address
    /// translation.
    pub fn plain_service(&self, key: &str, pod: &Pod) -> Result<()> {
        let (v4, v6) = (self.service(key, Family::V4), self.service(key, Family::V6));
        pod.netns.ip(&format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n"))?;
        for (index, node) in self.nodes.iter().enumerate() {
            let (to_v4, to_v6): (IpAddr, IpAddr) = if index == pod.spec.node {
                (pod.v4.into(), pod.v6.into())
            } else {
                (network::node_v4(pod.spec.node).into(), network::node_v6(pod.spec.node).into())
            };
            node.place
                .netns
                .ip(&format!("route add {v4}/32 via {to_v4}\nroute add {v6}/128 via {to_v6}\n"))?;
        }
        Ok(())
    }

    /// Waits until every daemon knows every pod and service.
    pub fn settled(&self) -> Result<()> {
        let pods = self.pods();
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner).clone();
        for node in &self.nodes {
            wait::eventually(&format!("{} knows every pod and service", node.name), || {
                node.ztunnel.check()?;
                let dump = node.config_dump()?.to_string();
                for pod in &pods {
                    ensure!(dump.contains(&pod.spec.uid()), "{} does not know {}", node.name, pod.spec.uid());
                }
                for (service, _) in services.values() {
                    ensure!(
                        dump.contains(&service.hostname()),
                        "{} does not know {}",
                        node.name,
                        service.hostname()
                    );
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The last lines of every daemon's log.
    pub fn report(&self, lines: usize) -> String {
        report::tails(self.dir(), lines)
    }

    /// Removes the lab and checks that nothing of it is left: no namespace, mount, process, pin or directory.
    pub fn finish(mut self) -> Result<()> {
        let dir = self.dir().to_owned();
        let mut objects = Vec::new();
        for node in &self.nodes {
            objects.push(leaks::Objects::pinned(&node.pins())?);
        }
        self.janitor.remove()?;
        let mut left = Vec::new();
        for entry in std::fs::read_dir(crate::netns::NAMES)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            left.extend(name.starts_with(&self.prefix).then(|| format!("namespace {name}")));
        }
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        left.extend(
            mounts.lines().filter(|line| line.contains(&self.prefix)).map(|line| format!("mount {line}")),
        );
        left.extend(dir.exists().then(|| format!("directory {}", dir.display())));
        if !left.is_empty() {
            bail!("left behind: {}", left.join(", "));
        }
        objects.iter().try_for_each(leaks::Objects::gone)
    }

    /// Leaves the lab running when its process ends; returns its directory. [`crate::sweep`] removes it.
    pub fn keep(self) -> Result<PathBuf> {
        self.janitor.keep()
    }
}
