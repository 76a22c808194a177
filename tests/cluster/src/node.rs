//! A node: a machine with containerd, kubelet and kube-proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ambit_harness::within;
use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::network::{self, Subnet, done};
use crate::parts::Parts;
use crate::parts::versions::PAUSE_IMAGE;
use crate::pki::{Pki, Subject};

/// What containerd listens on, in each node.
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Generous: it only costs time when something is broken.
const READY: Duration = Duration::from_mins(5);

/// A node of a cluster that is up.
#[derive(Debug)]
pub struct Node {
    pub(crate) machine: Machine,
    pub(crate) number: u8,
    pub(crate) subnet: Subnet,
    pub(crate) parts: Parts,
    pub(crate) taints: Vec<String>,
    /// How many nodes there are.
    pub(crate) nodes: u8,
    /// The machine that all of them are joined to.
    pub(crate) control: Machine,
}

impl Node {
    /// As Kubernetes knows it.
    pub fn name(&self) -> &str {
        &self.machine.spec.name
    }

    /// Where the host and the other nodes reach it.
    pub fn address(&self) -> Ipv4Addr {
        self.subnet.node(self.number).0
    }

    /// [`Node::address`] of the other family.
    pub fn address_v6(&self) -> Ipv6Addr {
        self.subnet.node(self.number).1
    }

    /// A command that runs inside all of the node's namespaces, and is killed when its caller ends.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Command {
        self.machine.run(program, arguments)
    }

    /// The process id of its init: `/proc/PID/root` is its file system, `/proc/PID/ns` its namespaces.
    pub fn pid(&self) -> Result<i32> {
        self.machine.pid()
    }

    /// Ends the kubelet, containerd or kube-proxy; pods go on.
    pub fn stop(&self, service: &str) -> Result<()> {
        match self.machine.service(service)? {
            Some(process) => process.end(Duration::from_secs(10)),
            None => Ok(()),
        }
    }

    /// `ctr` for the images and containers of this node's Kubernetes.
    pub fn ctr(&self, arguments: &[&str]) -> Command {
        let ctr = self.parts.program("ctr").display().to_string();
        let words = ["--address", CONTAINERD, "--namespace", "k8s.io"];
        let mut command = self.run(&ctr, &words);
        command.args(arguments);
        command
    }

    /// Its certificates: the node's own name is what it may act as.
    pub(crate) fn certificates(&self, pki: &Pki) -> Result<()> {
        let name = self.name();
        let server = crate::control::server(self.subnet);
        let addresses = [IpAddr::from(self.address()), self.address_v6().into()];
        let user = format!("system:node:{name}");
        let subject =
            Subject { user: &user, group: Some("system:nodes"), names: &[name], addresses: &addresses };
        pki.issue(&format!("{name}-serving"), &subject)?;
        pki.client(name, &user, Some("system:nodes"), &server)?;
        pki.client(&format!("{name}-proxy"), "system:kube-proxy", None, &server)?;
        Ok(())
    }

    /// Pulls the plug and starts the node again: its processes die, pods and their namespaces with them;
    /// `/run` and the pins of its bpffs are gone; disks are as they were. Its services run when this
    /// returns; [`crate::Cluster::ready`] waits for more.
    pub fn reboot(&self) -> Result<()> {
        self.power_off()?;
        self.power_on()
    }

    /// The first half of [`Node::reboot`].
    pub fn power_off(&self) -> Result<()> {
        self.machine.kill()
    }

    /// The second half of [`Node::reboot`].
    pub fn power_on(&self) -> Result<()> {
        self.boot()?;
        self.start_kubelet()?;
        self.start_proxy()
    }

    /// Makes the machine and starts containerd.
    pub(crate) fn boot(&self) -> Result<()> {
        self.machine.boot()?;
        network::join(&self.control, &self.machine, self.subnet, self.number, self.nodes)?;
        self.furnish()?;
        self.start_containerd()
    }

    /// [`Node::boot`] for the first time: with the images that every node has.
    pub(crate) fn install(&self) -> Result<()> {
        self.boot()?;
        self.parts.images().iter().try_for_each(|archive| self.load(archive))
    }

    /// Loads the images of an archive.
    pub(crate) fn load(&self, archive: &Path) -> Result<()> {
        let file =
            std::fs::File::open(archive).with_context(|| format!("failed to open {}", archive.display()))?;
        // Through its input: not every path of the host is to be seen in there.
        let mut command = self.ctr(&["images", "import", "-"]);
        let output = command.stdin(file).output()?;
        anyhow::ensure!(
            output.status.success(),
            "{} on {}: {}",
            archive.display(),
            self.name(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(())
    }

    /// Writes its settings and its CNI plugins.
    fn furnish(&self) -> Result<()> {
        let root = format!("/proc/{}/root", self.pid()?);
        let root = Path::new(&root);
        for folder in ["etc/cni/net.d", "opt/cni/bin", "etc/kubernetes", "etc/containerd"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        let write = |path: &str, text: &str| {
            std::fs::write(root.join(path), text)
                .with_context(|| format!("failed to write {path} of {}", self.name()))
        };
        write("etc/containerd/config.toml", &containerd_config())?;
        write("etc/kubernetes/kubelet.yaml", &format!("{:#}\n", self.kubelet_config()?))?;
        write("etc/kubernetes/kube-proxy.yaml", &format!("{:#}\n", self.proxy_config()))?;
        // No name server: what is outside the cluster has no names.
        write("etc/kubernetes/resolv.conf", "")?;
        for entry in std::fs::read_dir(self.parts.cni())? {
            let entry = entry?;
            let to = root.join("opt/cni/bin").join(entry.file_name());
            if !to.exists() {
                std::fs::copy(entry.path(), to)?;
            }
        }
        let conflist = root.join("etc/cni/net.d/10-bridge.conflist");
        if !conflist.exists() {
            std::fs::write(conflist, format!("{:#}\n", self.conflist()))?;
        }
        Ok(())
    }

    /// Starts containerd and waits until it answers.
    pub fn start_containerd(&self) -> Result<()> {
        let config = "/etc/containerd/config.toml";
        self.serve("containerd", &["--config", config, "--log-level", "warn"])?;
        let socket = format!("/proc/{}/root{CONTAINERD}", self.pid()?);
        within(READY, "containerd answers", || {
            std::os::unix::net::UnixStream::connect(&socket).map(drop).context("failed to connect")
        })?;
        within(READY, "containerd is ready", || done(&mut self.ctr(&["images", "list", "--quiet"])).map(drop))
    }

    /// Starts the kubelet.
    pub fn start_kubelet(&self) -> Result<()> {
        let kubeconfig = format!("--kubeconfig={}", self.pki(&format!("{}.kubeconfig", self.name())));
        let name = format!("--hostname-override={}", self.name());
        let address = format!("--node-ip={},{}", self.address(), self.address_v6());
        let arguments = ["--config=/etc/kubernetes/kubelet.yaml", &kubeconfig, &name, &address];
        self.serve("kubelet", &arguments)
    }

    /// Starts kube-proxy.
    pub fn start_proxy(&self) -> Result<()> {
        self.serve("kube-proxy", &["--config=/etc/kubernetes/kube-proxy.yaml"])
    }

    fn serve(&self, name: &str, arguments: &[&str]) -> Result<()> {
        if self.machine.service(name)?.is_some_and(|process| process.alive()) {
            return Ok(());
        }
        let mut command = vec![self.parts.program(name).display().to_string()];
        command.extend(arguments.iter().map(|word| (*word).to_owned()));
        self.machine.serve(name, &command, &self.parts.bin())
    }

    /// A file of the cluster's certificates.
    fn pki(&self, name: &str) -> String {
        let state = self.machine.spec.folder.parent().unwrap_or(Path::new("/"));
        state.join("pki").join(name).display().to_string()
    }

    fn kubelet_config(&self) -> Result<Value> {
        let taints: Vec<Value> = self.taints.iter().map(|text| taint(text)).collect::<Result<_>>()?;
        Ok(json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": self.pki(&format!("{}-serving.crt", self.name())),
            "tlsPrivateKeyFile": self.pki(&format!("{}-serving.key", self.name())),
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": false,
            "failSwapOn": false,
            "localStorageCapacityIsolation": false,
            "enforceNodeAllocatable": [],
            "clusterDNS": [network::DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "resolvConf": "/etc/kubernetes/resolv.conf",
            "registerWithTaints": taints,
            "maxPods": 250,
            // Nothing is evicted or collected, however full the developer's disk is.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "0%",
                "nodefs.available": "0%",
                "nodefs.inodesFree": "0%",
                "imagefs.available": "0%",
            },
            "volumeStatsAggPeriod": "-1s",
            // What changes is reported at once, and seldom otherwise.
            "nodeStatusUpdateFrequency": "2s",
            "nodeStatusReportFrequency": "1m",
            "nodeLeaseDurationSeconds": 10,
            "syncFrequency": "10s",
            "serializeImagePulls": false,
            "eventRecordQPS": 100,
            "eventBurst": 200,
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
        }))
    }

    fn proxy_config(&self) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "hostnameOverride": self.name(),
            "clientConnection": {"kubeconfig": self.pki(&format!("{}-proxy.kubeconfig", self.name()))},
            "clusterCIDR": network::PODS,
            "nftables": {"minSyncPeriod": "100ms"},
            // These limits are the machine's own, and not to be touched from here.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
                "udpTimeout": "0s",
                "udpStreamTimeout": "0s",
            },
        })
    }

    fn conflist(&self) -> Value {
        let (v4, v6) = network::pods(self.number);
        json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": v4}], [{"subnet": v6}]],
                        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                    },
                },
                {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
            ],
        })
    }
}

/// `key=value:Effect`, or `key:Effect`.
fn taint(text: &str) -> Result<Value> {
    let (name, effect) = text.rsplit_once(':').with_context(|| format!("no effect in the taint {text:?}"))?;
    let (key, value) = name.split_once('=').unwrap_or((name, ""));
    Ok(json!({"key": key, "value": value, "effect": effect}))
}

fn containerd_config() -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{CONTAINERD}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # This machine does not let scores be lowered.
  restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"#
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::taint;

    #[test]
    fn node_taints_are_parsed() {
        let rows = [
            ("with a value", "a/b=c:NoSchedule", Some(("a/b", "c", "NoSchedule"))),
            ("without", "a/b:NoExecute", Some(("a/b", "", "NoExecute"))),
            ("no effect", "a/b", None),
        ];
        for (name, text, expected) in rows {
            let expected =
                expected.map(|(key, value, effect)| json!({"key": key, "value": value, "effect": effect}));
            assert_eq!(taint(text).ok(), expected, "{name}");
        }
    }
}
