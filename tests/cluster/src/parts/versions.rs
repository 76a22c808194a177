//! What the cluster is made of, pinned.

/// Kubernetes, from its Go modules. 1.35 refuses cgroup v1 by default.
pub const KUBERNETES: &str = "1.34.2";
/// The same release of its published libraries (`k8s.io/api` and its kin).
pub(super) const LIBRARIES: &str = "v0.34.2";
/// A version that the apiserver's progress requests need.
pub(super) const ETCD: &str = "v3.6.16";
pub(super) const COREDNS: &str = "v1.12.2";
pub(super) const HELM: &str = "v3.22.0";
/// Its portmap knows nftables, which Debian's does not.
pub(super) const CNI_PLUGINS: &str = "v1.9.1";
/// The last release that is a Go module as it is; it has no go.mod.
pub(super) const H2SPEC: &str = "v2.2.1+incompatible";
/// What it uses: the newest would need a later Go.
pub(super) const H2SPEC_LIBRARIES: [(&str, &str); 3] = [
    ("github.com/spf13/cobra", "v1.10.2"),
    ("github.com/fatih/color", "v1.18.0"),
    ("golang.org/x/net", "v0.48.0"),
];
/// The first Go release that builds all of them.
pub(super) const GO: (u32, u32) = (1, 25);

/// What the pause image is called in the clusters.
pub(crate) const PAUSE_IMAGE: &str = "ambit.dev/pause:1";
/// What the CoreDNS image is called in the clusters.
pub(crate) const COREDNS_IMAGE: &str = "ambit.dev/coredns:1.12.2";

/// Istio, whose echo server the Gateway API's conformance suite asks.
pub(super) const ISTIO: &str = "v0.0.0-20260827124520-eed52ebb66ad";
/// What that suite calls its image.
pub(super) const ECHO_IMAGE: &str = "registry.k8s.io/gateway-api/echo-advanced:v1.5.1";
/// The Gateway API, whose definitions are installed in clusters with waypoints.
pub(super) const GATEWAY_API: &str = "v1.6.3";
