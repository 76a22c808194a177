//! Which kinds the metrics of objects show.

use ambit_core::derive::{Condition, ObjectKey};

use super::*;

#[test]
fn rejected_objects_of_every_kind_are_shown() {
    let rejected = |kind: &Kind| Condition {
        object: ObjectKey { kind: *kind, namespace: "shop".to_owned(), name: "cart".to_owned() },
        field: None,
        accepted: false,
        message: "rejected".to_owned(),
    };
    let status = Status {
        objects: Kind::ALL.iter().map(|kind| (kind.name(), 2)).collect(),
        conditions: Kind::ALL.iter().map(rejected).collect(),
        ..Status::default()
    };
    let mut all = Exposition::default();
    objects(&status, &mut all);
    let text = all.into_own_text();
    for kind in ["Namespace", "EndpointSlice", "ServiceEntry"].into_iter().chain(kinds()) {
        for line in [
            format!("ambit_controller_objects{{kind=\"{kind}\"}} 2\n"),
            format!("ambit_controller_objects_rejected{{kind=\"{kind}\"}} 1\n"),
        ] {
            assert!(text.contains(&line), "{line:?} is not in {text}");
        }
    }
}
