//! Gateway and ReferenceGrant: [`convert`] and [`convert_grant`].

use ambit_core::derive::{
    AllowedNamespaces, Gateway, GrantFrom, GrantTo, LabelRequirement, LabelValue, Listener, ReferenceGrant,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::Mistake;
use crate::field::Report;
use crate::gateway_api as written;
use crate::metadata;

/// The protocol of a waypoint's listener.
const HBONE: &str = "HBONE";
/// The condition in which the controller records that a waypoint was programmed once.
const FIRST_PROGRAMMED: &str = "ambit.dev/FirstProgrammed";

pub(crate) fn convert(gateway: written::Gateway) -> Result<Gateway, Vec<Mistake>> {
    let mut report = Report::default();
    let metadata = metadata::in_namespace(&mut report, gateway.metadata);
    let own = gateway.spec.listeners.iter().position(|listener| listener.protocol == HBONE);
    let listeners = gateway.spec.listeners.into_iter().enumerate().map(|(index, it)| {
        // What is wrong with a listener that a waypoint does not have anyway is its own affair.
        let mut others = Report::default();
        listener(if own == Some(index) { &mut report } else { &mut others }, index, it)
    });
    let listeners = listeners.collect();
    let is_record = |it: &written::Condition| it.kind == FIRST_PROGRAMMED && it.status == "True";
    let was_programmed = gateway.status.conditions.iter().any(is_record);
    let class = gateway.spec.gateway_class_name;
    report.finish(Gateway { metadata, class, listeners, was_programmed })
}

fn listener(report: &mut Report, index: usize, listener: written::Listener) -> Listener {
    let field = format!("spec.listeners[{index}]");
    let written::Listener { name, port, protocol, allowed_routes } = listener;
    let written::AllowedRoutes { namespaces, kinds } = allowed_routes;
    Listener {
        name,
        // A mistake in a waypoint's own listener rejects the Gateway, so the value does not count then.
        port: report.port(format_args!("{field}.port"), port).unwrap_or_default(),
        protocol,
        namespaces: allowed(report, &format!("{field}.allowedRoutes.namespaces"), namespaces),
        kinds: kinds.into_iter().map(|it| it.kind).collect(),
    }
}

fn allowed(report: &mut Report, field: &str, namespaces: written::RouteNamespaces) -> AllowedNamespaces {
    let written::RouteNamespaces { from, selector } = namespaces;
    match (from.as_deref(), selector) {
        (None | Some("Same"), _) => AllowedNamespaces::Same,
        (Some("All"), _) => AllowedNamespaces::All,
        (Some("None"), _) => AllowedNamespaces::None,
        (Some("Selector"), Some(selector)) => {
            AllowedNamespaces::Selected(requirements(report, &format!("{field}.selector"), selector))
        }
        (Some("Selector"), None) => {
            report.add(format_args!("{field}.selector"), "missing");
            AllowedNamespaces::None
        }
        (Some(other), _) => {
            let message = format_args!("{other:?} is none of All, Same, Selector and None");
            report.add(format_args!("{field}.from"), message);
            AllowedNamespaces::None
        }
    }
}

fn requirements(report: &mut Report, field: &str, selector: LabelSelector) -> Vec<LabelRequirement> {
    let labels = selector.match_labels.unwrap_or_default().into_iter();
    let equal = labels.map(|(key, value)| LabelRequirement { key, value: LabelValue::In(vec![value]) });
    let mut found: Vec<LabelRequirement> = equal.collect();
    for (index, written) in selector.match_expressions.unwrap_or_default().into_iter().enumerate() {
        let LabelSelectorRequirement { key, operator, values } = written;
        let values = values.unwrap_or_default();
        let field = format!("{field}.matchExpressions[{index}]");
        // As the API server asks of every selector; a NotIn without values would select everything.
        match (operator.as_str(), values.is_empty()) {
            ("In" | "NotIn", true) => report.add(format_args!("{field}.values"), "missing"),
            ("Exists" | "DoesNotExist", false) => {
                report.add(format_args!("{field}.values"), format_args!("{operator} takes no values"));
            }
            _ => {}
        }
        let value = match operator.as_str() {
            "In" => LabelValue::In(values),
            "NotIn" => LabelValue::NotIn(values),
            "Exists" => LabelValue::Exists,
            "DoesNotExist" => LabelValue::DoesNotExist,
            other => {
                let message = format_args!("{other:?} is none of In, NotIn, Exists and DoesNotExist");
                report.add(format_args!("{field}.operator"), message);
                continue;
            }
        };
        found.push(LabelRequirement { key, value });
    }
    found
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
