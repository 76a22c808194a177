use super::*;
use crate::kubernetes::item::Rejected;

fn key() -> ObjectKey {
    ObjectKey { kind: Kind::AuthorizationPolicy, namespace: "shop".to_owned(), name: "cart".to_owned() }
}

fn condition(accepted: bool, field: Option<&str>, message: &str) -> Condition {
    Condition { object: key(), field: field.map(str::to_owned), accepted, message: message.to_owned() }
}

#[test]
fn conditions_of_verdicts() {
    type Row<'a> = (&'a str, &'a [&'a str], &'a [Condition], Option<(&'static str, &'static str, &'a str)>);
    let fine = condition(true, None, "");
    let noted = condition(true, Some("spec.rules[0]"), "drops hosts");
    let refused = condition(false, Some("spec.action"), "AUDIT is not enforced");
    let rows: [Row<'_>; 6] = [
        ("nothing known", &[], &[], None),
        ("fine", &[], std::slice::from_ref(&fine), Some(("True", "Accepted", "in force"))),
        (
            "noted",
            &[],
            std::slice::from_ref(&noted),
            Some(("True", "AcceptedWithWarnings", "spec.rules[0]: drops hosts")),
        ),
        (
            "refused",
            &[],
            &[noted.clone(), refused],
            Some(("False", "Invalid", "spec.rules[0]: drops hosts; spec.action: AUDIT is not enforced")),
        ),
        ("unreadable", &["a: b"], &[], Some(("False", "Invalid", "a: b"))),
        (
            "unreadable now",
            &["a", "b"],
            std::slice::from_ref(&fine),
            Some(("False", "Invalid", "a; b; the last good version stays in force")),
        ),
    ];
    for (name, mistakes, derived, expected) in rows {
        let mistakes = mistakes.iter().map(|mistake| (*mistake).to_owned()).collect();
        let verdict = Verdict { mistakes, closed: None, derived: derived.to_vec() };
        let expected = expected.map(|(status, reason, message)| (status, reason, message.to_owned()));
        assert_eq!(verdict.condition(), expected, "{name}");
    }
}

#[test]
fn a_policy_with_mistakes_says_what_it_closes() {
    let verdict = Verdict {
        mistakes: vec!["a: b".to_owned()],
        closed: Some("; all connections to what it selects are refused until then"),
        derived: vec![condition(false, Some("spec"), "has mistakes")],
    };
    let message = "a: b; all connections to what it selects are refused until then".to_owned();
    assert_eq!(verdict.condition(), Some(("False", "Invalid", message)));
}

#[test]
fn conditions_are_written_once_and_others_kept() {
    let seen = |generation, conditions: Vec<Value>| Seen {
        version: "v1",
        created: String::new(),
        key: key(),
        read: Err(Rejected {
            mistakes: vec![Mistake { field: "spec".to_owned(), message: "no".to_owned() }],
            closed: None,
        }),
        uid: String::new(),
        resource_version: "7".to_owned(),
        generation,
        taints: Vec::new(),
        conditions,
        listeners: Vec::new(),
    };
    let statuses = Statuses::default();
    let (early, late) = (Timestamp::from_second(1_000).unwrap(), Timestamp::from_second(2_000).unwrap());
    let others = json!({"type": "other", "status": "True"});
    statuses.seen(&seen(1, vec![others.clone()]));
    let (name, patch) = statuses.next(early).expect("a patch");
    assert_eq!((name, &patch["metadata"]["resourceVersion"]), (key(), &json!("7")));
    let written = patch["status"]["conditions"].as_array().unwrap().clone();
    assert_eq!((written.len(), &written[0]), (2, &others), "conditions of others stay");
    assert_eq!(written[1]["lastTransitionTime"], "1970-01-01T00:16:40Z");
    assert_eq!(statuses.next(early), None, "once");
    statuses.seen(&seen(1, written.clone()));
    assert_eq!(statuses.next(late), None, "as it should be");
    // Another version with the same condition: its transition time stays.
    statuses.seen(&seen(2, written));
    let (_, patch) = statuses.next(late).expect("a patch");
    let ours = &patch["status"]["conditions"][1];
    assert_eq!(
        (&ours["observedGeneration"], &ours["lastTransitionTime"]),
        (&json!(2), &json!("1970-01-01T00:16:40Z"))
    );
    statuses.all_dirty();
    statuses.gone(&key());
    assert_eq!(statuses.next(late), None);
}
