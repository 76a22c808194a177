use super::*;
use ambit_proxy::testing::{mesh, put, uid, workload};

#[test]
fn released_pod_keeps_its_name_until_many_more_have_left() {
    let names = Names::new(vec![(WorkloadNumber(1), uid("web").to_string())]);
    assert_eq!(names.uid(WorkloadNumber(1)), Some(uid("web")), "enrolled by an earlier daemon");
    assert!(names.workload(WorkloadNumber(1)).is_none(), "the mesh is not known yet");
    names.follow(&mesh([put(workload("web", &["10.0.0.1"]))]), None);
    names.follow(&mesh([]), None);
    let known = |number| names.workload(WorkloadNumber(number)).map(|workload| workload.uid.clone());
    assert_eq!(known(1), Some(uid("web")), "it left the mesh before it ended");
    names.released(&uid("web"));
    assert_eq!(known(1), Some(uid("web")), "nor does its release take the name away");
    assert!(names.all_enrolled().is_empty() && !names.is_enrolled(WorkloadNumber(1)));

    names.enrolled(WorkloadNumber(2), &uid("web"));
    names.follow(&mesh([put(workload("web", &["10.0.0.2"]))]), None);
    let address = |number| names.workload(WorkloadNumber(number)).map(|workload| workload.addresses[0]);
    assert_ne!(address(1), address(2), "a new enrolment is another");
    for number in 0..u64::try_from(LEFT).unwrap() {
        names.enrolled(WorkloadNumber(10 + number), &uid("churn"));
        names.released(&uid("churn"));
    }
    assert_eq!(known(1), None, "forgotten at last");
    assert_eq!(names.all_enrolled(), [(WorkloadNumber(2), uid("web"))]);
}
