//! Where requests go.

use ambit_core::model::ServiceKey;
use ambit_core::route::Target;

use super::super::Problem;
use super::super::common::{decode_port, required};
use crate::proto::ambit::v1 as wire;
use wire::route_target as part;

pub(super) fn encode_target(target: &Target) -> wire::RouteTarget {
    let target = match target {
        Target::Service { service, port } => part::Target::Service(part::ServicePort {
            namespace: service.namespace.to_string(),
            hostname: service.hostname.to_string(),
            port: (*port).into(),
        }),
        Target::Invalid { reason } => part::Target::Invalid(reason.to_string()),
    };
    wire::RouteTarget { target: Some(target) }
}

pub(super) fn decode_target(field: &str, target: Option<&wire::RouteTarget>) -> Result<Target, Problem> {
    match target.and_then(|target| target.target.as_ref()) {
        Some(part::Target::Service(at)) => Ok(Target::Service {
            service: ServiceKey {
                namespace: required(&format!("{field}.service.namespace"), &at.namespace)?,
                hostname: required(&format!("{field}.service.hostname"), &at.hostname)?,
            },
            port: decode_port(|| format!("{field}.service.port"), at.port)?,
        }),
        Some(part::Target::Invalid(reason)) => Ok(Target::Invalid { reason: reason.as_str().into() }),
        // A kind of target that this version does not know: an error for its share, not silence.
        None => Ok(Target::Invalid { reason: "this version does not know the kind of backend".into() }),
    }
}
