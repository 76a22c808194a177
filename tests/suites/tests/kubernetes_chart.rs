//! What the chart renders, by Helm itself and without a cluster: what each platform changes, which values
//! restart which pods, and what is refused.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use ambit_cluster::{Parts, parts, parts_folder};
use ambit_suites::Rows;
use ambit_suites::kubernetes::{SYSTEM, run, workspace};
use anyhow::{Context, Result, ensure};

#[test]
fn what_the_chart_renders() -> Result<()> {
    let helm = Helm { parts: parts(&parts_folder(&target()?))? };
    let plain = helm.render(&[])?;
    let mut table = Rows::new();
    for (platform, less, more) in PLATFORMS {
        table.row(&format!("what {platform} changes"), || {
            let rendered = helm.render(&[&format!("platform={platform}")])?;
            let (gone, new) = difference(&plain, &rendered);
            ensure!(gone == words(less), "without: {gone:#?}");
            let expected = words(more);
            let missing: Vec<_> = expected.difference(&new).collect();
            ensure!(missing.is_empty(), "missing: {missing:#?} in {new:#?}");
            ensure!(expected.is_empty() == new.is_empty(), "more than expected: {new:#?}");
            Ok(())
        });
    }
    table.row("a value of the user's goes before the platform's", || {
        let rendered =
            helm.render(&["platform=gke", "cni.binDir=/mine", "priorityClassQuota.enabled=false"])?;
        let (_, new) = difference(&plain, &rendered);
        ensure!(new == words(&["hostPath: {path: /mine, type: DirectoryOrCreate}"]), "{new:#?}");
        Ok(())
    });
    for (name, settings, daemons, controllers) in RESTARTS {
        table.row(name, || {
            let rendered = helm.render(settings)?;
            ensure!(rendered != plain, "nothing differs");
            let restarted = |deployment: &str| -> Result<bool> {
                Ok(checksum(&plain, deployment)? != checksum(&rendered, deployment)?)
            };
            ensure!(restarted("kind: DaemonSet")? == daemons, "daemons restart: {}", !daemons);
            ensure!(restarted("kind: Deployment")? == controllers, "controllers restart: {}", !controllers);
            Ok(())
        });
    }
    table.row("a surge in percent", || {
        let rendered = helm.render(&["ztunnel.maxSurge=10%"])?;
        ensure!(rendered.contains("rollingUpdate: {maxSurge: 10%, maxUnavailable: 0}"), "{rendered}");
        Ok(())
    });
    table.row("a single replica has no disruption budget", || {
        ensure!(plain.contains("kind: PodDisruptionBudget"));
        ensure!(!helm.render(&["controller.replicas=1"])?.contains("kind: PodDisruptionBudget"));
        Ok(())
    });
    for (name, arguments, expected) in REFUSED {
        table.row(name, || {
            let error = run(&mut helm.template(arguments)).err().context("it is rendered")?;
            ensure!(format!("{error:#}").contains(expected), "{error:#}");
            Ok(())
        });
    }
    table.finish();
    Ok(())
}

/// Platforms, the lines that they take from the plain chart, and those that they add at least.
const PLATFORMS: [(&str, &[&str], &[&str]); 5] = [
    ("eks", &[], &[]),
    ("aks", &[], &[]),
    (
        "k3s",
        &[
            "host_cni_conf_dir: /etc/cni/net.d",
            "hostPath: {path: /etc/cni/net.d, type: DirectoryOrCreate}",
            "hostPath: {path: /opt/cni/bin, type: DirectoryOrCreate}",
        ],
        &[
            "host_cni_conf_dir: /var/lib/rancher/k3s/agent/etc/cni/net.d",
            "hostPath: {path: /var/lib/rancher/k3s/agent/etc/cni/net.d, type: DirectoryOrCreate}",
            "hostPath: {path: /var/lib/rancher/k3s/data/cni, type: DirectoryOrCreate}",
        ],
    ),
    (
        "gke",
        &["hostPath: {path: /opt/cni/bin, type: DirectoryOrCreate}"],
        &[
            "hostPath: {path: /home/kubernetes/bin, type: DirectoryOrCreate}",
            "kind: ResourceQuota",
            "- {scopeName: PriorityClass, operator: In, values: [system-node-critical, \
             system-cluster-critical]}",
        ],
    ),
    (
        "openshift",
        &[
            "add: [SYS_PTRACE]",
            "host_cni_conf_dir: /etc/cni/net.d",
            "hostPath: {path: /etc/cni/net.d, type: DirectoryOrCreate}",
            "hostPath: {path: /opt/cni/bin, type: DirectoryOrCreate}",
        ],
        &[
            "add: [SYS_PTRACE, DAC_OVERRIDE]",
            "host_cni_conf_dir: /etc/kubernetes/cni/net.d",
            "hostPath: {path: /etc/kubernetes/cni/net.d, type: DirectoryOrCreate}",
            "hostPath: {path: /var/lib/cni/bin, type: DirectoryOrCreate}",
            "seLinuxOptions: {\"type\":\"spc_t\"}",
            "kind: SecurityContextConstraints",
            "allowPrivilegedContainer: false",
            "users: [\"system:serviceaccount:ambit-system:ztunnel\"]",
            "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: \
             \"system:openshift:scc:nonroot-v2\"}",
        ],
    ),
];

/// Values, and whether they restart the daemons and the controllers.
const RESTARTS: [(&str, &[&str], bool, bool); 4] = [
    ("the number of replicas restarts nothing", &["controller.replicas=3"], false, false),
    ("the size of a surge restarts nothing", &["ztunnel.maxSurge=5"], false, false),
    ("what daemons read restarts them", &["ztunnel.workers=4"], true, false),
    ("what all read restarts all", &["log.filter=debug"], true, true),
];

/// Arguments that Helm refuses, and what it says.
const REFUSED: [(&str, &[&str], &str); 3] = [
    ("Kubernetes 1.29", &["--kube-version", "1.29.9"], "incompatible with Kubernetes v1.29.9"),
    ("an unknown platform", &["--set", "platform=mainframe"], "platform"),
    ("a surge of nothing", &["--set", "ztunnel.maxSurge=0"], "maxSurge"),
];

struct Helm {
    parts: Parts,
}

impl Helm {
    fn template(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.parts.program("helm"));
        command.args(["template", "ambit"]).arg(workspace().join("deploy/chart"));
        command.args(["--namespace", SYSTEM, "--kube-version", "1.34.2"]).args(arguments);
        command
    }

    fn render(&self, settings: &[&str]) -> Result<String> {
        let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        run(&mut self.template(&arguments))
    }
}

/// Cargo's folder, in which the parts lie.
fn target() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().find(|folder| folder.ends_with("target"));
    Ok(target.context("the tests do not run from cargo's folder")?.to_owned())
}

/// The lines of one text that the other lacks, each way; without the checksums, which follow from others.
fn difference(old: &str, new: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let lines = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.contains("checksum/config"));
        lines.map(str::to_owned).collect()
    };
    let (old, new) = (lines(old), lines(new));
    (old.difference(&new).cloned().collect(), new.difference(&old).cloned().collect())
}

fn words(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(ToString::to_string).collect()
}

/// The checksum in the document of a kind.
fn checksum<'a>(rendered: &'a str, kind: &str) -> Result<&'a str> {
    let document =
        rendered.split("\n---\n").find(|document| document.contains(kind)).context("no document")?;
    document.lines().find(|line| line.contains("checksum/config")).context("no checksum")
}
