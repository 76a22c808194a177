//! Who is behind a number that the kernel's maps and records name a workload by: [`Names`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ambit_core::mesh::{Mesh, Touched};
use ambit_core::model::{Workload, WorkloadUid};
use ambit_loader::WorkloadNumber;
use parking_lot::RwLock;

/// Records come up to a moment after a pod has left, and its connections may take longer to end.
const LEFT: usize = 4096;

/// All numbers of this node's enrolments, and the last of those that ended.
#[derive(Debug, Default)]
pub(crate) struct Names(RwLock<Table>);

#[derive(Debug, Default)]
struct Table {
    known: BTreeMap<WorkloadNumber, Name>,
    /// Numbers of released pods, the oldest first.
    left: VecDeque<WorkloadNumber>,
}

#[derive(Clone, Debug)]
struct Name {
    uid: WorkloadUid,
    enrolled: bool,
    /// As the mesh said last: it may know the workload no more when its connections end.
    workload: Option<Arc<Workload>>,
}

impl Names {
    /// With those that earlier daemons enrolled.
    pub(crate) fn new(enrolled: Vec<(WorkloadNumber, String)>) -> Self {
        let names = Self::default();
        for (number, uid) in enrolled {
            names.enrolled(number, &WorkloadUid(uid.into()));
        }
        names
    }

    pub(crate) fn enrolled(&self, number: WorkloadNumber, uid: &WorkloadUid) {
        let name = || Name { uid: uid.clone(), enrolled: true, workload: None };
        self.0.write().known.entry(number).or_insert_with(name);
    }

    pub(crate) fn released(&self, uid: &WorkloadUid) {
        let mut table = self.0.write();
        let Table { known, left } = &mut *table;
        for (number, name) in known.iter_mut().filter(|(_, name)| name.enrolled && name.uid == *uid) {
            name.enrolled = false;
            left.push_back(*number);
        }
        while left.len() > LEFT
            && let Some(oldest) = left.pop_front()
        {
            known.remove(&oldest);
        }
    }

    /// Takes in what the mesh says of those that are enrolled.
    pub(crate) fn follow(&self, mesh: &Mesh, touched: Option<&Touched>) {
        let mut table = self.0.write();
        for name in table.known.values_mut().filter(|name| name.enrolled) {
            if touched.is_none_or(|touched| touched.workloads.contains(&name.uid))
                && let Some(workload) = mesh.workload(&name.uid)
            {
                name.workload = Some(workload.clone());
            }
        }
    }

    /// All that are enrolled, whether this daemon serves them yet or not.
    pub(crate) fn enrolled_ones(&self) -> Vec<(WorkloadNumber, WorkloadUid)> {
        let table = self.0.read();
        let enrolled = table.known.iter().filter(|(_, name)| name.enrolled);
        enrolled.map(|(number, name)| (*number, name.uid.clone())).collect()
    }

    /// The workload, enrolled or not any more.
    pub(crate) fn uid(&self, number: WorkloadNumber) -> Option<WorkloadUid> {
        self.0.read().known.get(&number).map(|name| name.uid.clone())
    }

    /// Whether it is enrolled.
    pub(crate) fn is_enrolled(&self, number: WorkloadNumber) -> bool {
        self.0.read().known.get(&number).is_some_and(|name| name.enrolled)
    }

    /// The workload as it is known, or was known last.
    pub(crate) fn workload(&self, number: WorkloadNumber) -> Option<Arc<Workload>> {
        self.0.read().known.get(&number)?.workload.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{mesh, put, uid, workload};

    #[test]
    fn a_pod_that_left_keeps_its_name_for_a_while() {
        let names = Names::new(vec![(WorkloadNumber(1), uid("web").to_string())]);
        assert_eq!(names.uid(WorkloadNumber(1)), Some(uid("web")), "enrolled by an earlier daemon");
        assert!(names.workload(WorkloadNumber(1)).is_none(), "the mesh is not known yet");
        names.follow(&mesh([put(workload("web", &["10.0.0.1"]))]), None);
        names.follow(&mesh([]), None);
        let known = |number| names.workload(WorkloadNumber(number)).map(|workload| workload.uid.clone());
        assert_eq!(known(1), Some(uid("web")), "it left the mesh before it ended");
        names.released(&uid("web"));
        assert_eq!(known(1), Some(uid("web")), "nor does its release take the name away");
        assert!(names.enrolled_ones().is_empty() && !names.is_enrolled(WorkloadNumber(1)));

        names.enrolled(WorkloadNumber(2), &uid("web"));
        names.follow(&mesh([put(workload("web", &["10.0.0.2"]))]), None);
        let address = |number| names.workload(WorkloadNumber(number)).map(|workload| workload.addresses[0]);
        assert_ne!(address(1), address(2), "a new enrolment is another");
        for number in 0..u64::try_from(LEFT).unwrap() {
            names.enrolled(WorkloadNumber(10 + number), &uid("churn"));
            names.released(&uid("churn"));
        }
        assert_eq!(known(1), None, "not for ever");
        assert_eq!(names.enrolled_ones(), [(WorkloadNumber(2), uid("web"))]);
    }
}
