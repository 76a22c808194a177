//! What an installation could leave behind, on the nodes and in the API: [`Remains`].

use ambit_harness::within;
use anyhow::{Result, ensure};

use super::{DEADLINE, Mesh, run};

/// What is there. Looked at before an installation and after its end.
#[derive(Debug)]
pub struct Remains {
    nodes: Vec<Vec<String>>,
    objects: Vec<String>,
    annotations: Vec<String>,
}

impl Remains {
    /// What is there now.
    pub fn of(mesh: &Mesh) -> Result<Self> {
        Ok(Self { nodes: nodes(mesh)?, objects: objects(mesh)?, annotations: annotations(mesh)? })
    }

    /// Waits until all is as it was.
    pub fn are_back(&self, mesh: &Mesh) -> Result<()> {
        within(DEADLINE, "all is as before", || {
            let now = Self::of(mesh)?;
            for (node, (before, after)) in self.nodes.iter().zip(&now.nodes).enumerate() {
                same(&format!("node{}", node + 1), before, after)?;
            }
            same("annotations", &self.annotations, &now.annotations)?;
            same("objects", &self.objects, &now.objects)
        })
    }
}

fn same(what: &str, before: &[String], after: &[String]) -> Result<()> {
    let new: Vec<_> = after.iter().filter(|thing| !before.contains(thing)).collect();
    let gone: Vec<_> = before.iter().filter(|thing| !after.contains(thing)).collect();
    ensure!(new.is_empty() && gone.is_empty(), "{what}: left {new:?}, missing {gone:?}");
    Ok(())
}

/// On each node: files where it writes, pins, programs at the hooks, rules. (kube-proxy takes its own chains
/// away when it likes.)
fn nodes(mesh: &Mesh) -> Result<Vec<Vec<String>>> {
    let look = "find /opt/cni/bin /etc/cni/net.d /run/ambit /sys/fs/bpf -printf '%p %y %s\\n' 2>/dev/null; \
                cat /etc/cni/net.d/*; bpftool cgroup tree $(awk '$3==\"cgroup2\"{print $2; exit}' \
                /proc/mounts) | awk 'NF>1{print $2,$3,$4}' | sort; nft list tables | grep -v kube-proxy; ip \
                rule; ip route show table all type local | grep -v proto; true";
    mesh.cluster
        .nodes()
        .iter()
        .map(|node| Ok(run(&mut node.run("bash", &["-c", look]))?.lines().map(str::to_owned).collect()))
        .collect()
}

/// Every object of the API, but for events and the definitions, which stay with what users wrote.
fn objects(mesh: &Mesh) -> Result<Vec<String>> {
    let kinds = mesh.kubectl(&["api-resources", "--cached=false", "--verbs=list", "-o", "name"])?;
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let path = "jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
    let all = mesh.kubectl(&["get", &kinds.join(","), "-A", "-o", path])?;
    let definition = |object: &&str| {
        let kind = object.split('/').next();
        matches!(kind, Some("CustomResourceDefinition" | "APIService")) && object.ends_with(".istio.io")
    };
    Ok(all.lines().filter(|object| !definition(object)).map(str::to_owned).collect())
}

/// Every annotation of every pod.
fn annotations(mesh: &Mesh) -> Result<Vec<String>> {
    let path = "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name}: \
                {.metadata.annotations}{\"\\n\"}{end}";
    let all = mesh.kubectl(&["get", "pods", "-A", "-o", path])?;
    Ok(all.lines().map(str::to_owned).collect())
}
