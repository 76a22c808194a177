//! Gateway and ReferenceGrant: [`convert`] and [`convert_grant`].

use ambit_core::derive::{Gateway, GrantFrom, GrantTo, ReferenceGrant};

use crate::Mistake;
use crate::field::Report;
use crate::gateway_api as written;
use crate::metadata;

/// The condition in which the controller records that a waypoint was programmed once.
const FIRST_PROGRAMMED: &str = "ambit.dev/FirstProgrammed";

pub(crate) fn convert(gateway: written::Gateway) -> Result<Gateway, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_namespace(&mut report, gateway.metadata);
    let listeners = gateway.spec.listeners.into_iter().enumerate();
    let mut hbone = listeners.filter(|(_, listener)| listener.protocol == "HBONE");
    let hbone_port =
        hbone.next().and_then(|(i, it)| report.port(format_args!("spec.listeners[{i}].port"), it.port));
    let is_record = |it: &written::Condition| it.kind == FIRST_PROGRAMMED && it.status == "True";
    let was_programmed = gateway.status.conditions.iter().any(is_record);
    let class = gateway.spec.gateway_class_name;
    report.finish(Gateway { metadata, class, hbone_port, was_programmed })
}

pub(crate) fn convert_grant(grant: written::ReferenceGrant) -> Result<ReferenceGrant, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_namespace(&mut report, grant.metadata);
    let from = grant.spec.from.into_iter().map(|it| {
        let written::GrantFrom { group, kind, namespace } = it;
        GrantFrom { group, kind, namespace }
    });
    let to = grant.spec.to.into_iter().map(|it| {
        let written::GrantTo { group, kind, name } = it;
        GrantTo { group, kind, name }
    });
    let grant = ReferenceGrant { metadata, from: from.collect(), to: to.collect() };
    report.finish(grant)
}
