//! `cargo xtask conformance`: the Gateway API's conformance suite for meshes, on a cluster of its own with
//! the mesh installed as users install it.
//!
//! Entry point: [`run`].

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use ambit_cluster::{Cluster, Options as ClusterOptions, conformance, parts_folder};
use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{build, cluster, ebpf, image, setup};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this test, by its name.
    #[arg(long, value_name = "TEST")]
    only: Option<String>,
}

/// The namespaces of the suite's mesh tests; the first has the waypoint of both.
const NAMESPACES: [&str; 2] = ["gateway-conformance-mesh", "gateway-conformance-mesh-consumer"];
const LABELS: &str = "istio.io/dataplane-mode=ambient,istio.io/use-waypoint=waypoint,\
                      istio.io/use-waypoint-namespace=gateway-conformance-mesh";
const PROFILES: &str = "MESH-HTTP,MESH-GRPC";
/// Named one by one, else the suite wants a GatewayClass for ingress. All that there are for meshes.
const FEATURES: [&str; 12] = [
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "HTTPRoute",
    "GRPCRoute",
];
const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, \
                       namespace: gateway-conformance-mesh}\nspec: {gatewayClassName: ambit-waypoint, \
                       listeners: [{name: mesh, port: 15008, protocol: HBONE, \
                       allowedRoutes: {namespaces: {from: All}}}]}\n";

/// Builds, installs, runs the suite, and says how many of its tests passed; fails when one did not.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure_root("conformance")?;
    setup::ensure(&ebpf::NEEDS)?;
    setup::ensure(&setup::LAB)?;
    ebpf::run(ebpf::Options::default())?;
    build::everything()?;
    cluster::prepare()?;
    image::for_tests()?;
    let parts = parts_folder(&build::target());
    let suite = conformance(&parts)?;
    let folder = tempfile::Builder::new().prefix("ambit-conformance-").tempdir()?;
    let mut cluster_options = ClusterOptions::new("conformance", folder.path().join("cluster"));
    cluster_options.helper = build::binaries().join("ambit-cluster-machine");
    cluster_options.parts = parts;
    build::say("starting a cluster");
    let cluster = Cluster::up(&cluster_options)?;
    for name in ["controller", "ztunnel", "cni", "waypoint"] {
        cluster.load(&image::test_folder().join(format!("{name}.tar")))?;
    }
    cluster.load(&suite.echo())?;
    install(&cluster)?;
    let report = build::target().join("conformance-report.yaml");
    let tests = outcomes(&cluster, &suite.suite(), &report, options.only.as_deref())?;
    cluster.down()?;
    summary(&tests, &report)
}

/// The definitions, the mesh, and the waypoint of the suite's namespaces, ready before it begins.
fn install(cluster: &Cluster) -> Result<()> {
    build::say("installing the mesh");
    let definitions = cluster.gateway_api().display().to_string();
    succeed(&mut cluster.kubectl(&["apply", "--server-side", "-f", &definitions]))?;
    let chart = build::root().join("deploy/chart").display().to_string();
    let flags = ["--namespace", "ambit-system", "--create-namespace", "--wait", "--timeout", "5m"];
    succeed(&mut cluster.helm(&[&["install", "ambit", &chart], &flags[..]].concat()))?;
    for namespace in NAMESPACES {
        succeed(&mut cluster.kubectl(&["create", "namespace", namespace]))?;
        let labels: Vec<&str> = LABELS.split(',').collect();
        succeed(&mut cluster.kubectl(&[&["label", "namespace", namespace], &labels[..]].concat()))?;
    }
    cluster.apply(GATEWAY)?;
    let programmed =
        ["--for=condition=Programmed", "--timeout=120s", "gateways.gateway.networking.k8s.io/waypoint"];
    succeed(&mut cluster.kubectl(&[&["-n", NAMESPACES[0], "wait"], &programmed[..]].concat()))
}

/// The outcome of each test.
fn outcomes(
    cluster: &Cluster,
    suite: &Path,
    report: &Path,
    only: Option<&str>,
) -> Result<BTreeMap<String, String>> {
    build::say("running the suite: some minutes");
    let log = build::target().join("conformance.log");
    let mut command = Command::new(suite);
    command.env("KUBECONFIG", cluster.kubeconfig()).stdin(Stdio::null()).stdout(Stdio::piped());
    command.args(["-test.v", "-test.timeout", "60m"]);
    command.arg(format!("-supported-features={}", FEATURES.join(",")));
    command.arg(format!("-conformance-profiles={PROFILES}")).arg(format!("-namespace-labels={LABELS}"));
    command.args(["-organization=ambit", "-project=ambit", "-url=https://ambit.dev", "-contact=ambit"]);
    command.arg(format!("-version={}", env!("CARGO_PKG_VERSION")));
    command.arg(format!("-report-output={}", report.display()));
    if let Some(only) = only {
        command.arg(format!("-run-test={only}"));
    }
    let mut child = command.spawn().with_context(|| format!("failed to start {}", suite.display()))?;
    let output = child.stdout.take().context("no output")?;
    let mut text = String::new();
    let mut found = BTreeMap::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("failed to read what the suite says")?;
        if let Some((name, outcome)) = outcome(&line) {
            build::say(&format!("{name}: {outcome}"));
            found.insert(name.to_owned(), outcome.to_owned());
        }
        text.push_str(&line);
        text.push('\n');
    }
    let status = child.wait().context("failed to wait for the suite")?;
    std::fs::write(&log, text).with_context(|| format!("failed to write {}", log.display()))?;
    ensure!(!found.is_empty(), "the suite ran no test ({status}); its log: {}", log.display());
    Ok(found)
}

/// `    --- PASS: TestConformance/MeshBasic (1.02s)`: a test of the suite, and its outcome. Those below it,
/// and the frame around all, are none.
fn outcome(line: &str) -> Option<(&str, &str)> {
    let (outcome, rest) = line.trim_start().strip_prefix("--- ")?.split_once(": ")?;
    let (_, name) = rest.split_whitespace().next()?.split_once('/')?;
    (!name.contains('/')).then_some((name, outcome))
}

fn summary(tests: &BTreeMap<String, String>, report: &Path) -> Result<()> {
    let of = |wanted: &str| tests.values().filter(|outcome| *outcome == wanted).count();
    let (passed, failed, skipped) = (of("PASS"), of("FAIL"), of("SKIP"));
    println!("{passed} passed, {failed} failed, {skipped} skipped; the report: {}", report.display());
    let failures: Vec<&str> =
        tests.iter().filter(|(_, outcome)| *outcome == "FAIL").map(|(name, _)| name.as_str()).collect();
    ensure!(failures.is_empty(), "failed: {}", failures.join(", "));
    Ok(())
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("failed to start {command:?}"))?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, said());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn outcomes_are_those_of_the_suites_tests() {
        let rows = [
            ("    --- PASS: TestConformance/MeshBasic (1.02s)", Some(("MeshBasic", "PASS"))),
            ("    --- FAIL: TestConformance/MeshPorts (1.02s)", Some(("MeshPorts", "FAIL"))),
            ("        --- PASS: TestConformance/MeshBasic/one (0.50s)", None),
            ("--- PASS: TestConformance (60.00s)", None),
            ("=== RUN   TestConformance/MeshBasic", None),
        ];
        for (line, expected) in rows {
            assert_eq!(super::outcome(line), expected, "{line}");
        }
    }
}
