//! Static pods: the kubelet starts them from a file of its own, before it knows of the API server.

/// The annotation of the API's object for a static pod. That object's uid is not the one that the pod's
/// processes have.
pub(crate) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
