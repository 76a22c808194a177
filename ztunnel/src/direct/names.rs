//! Which workload is meant by a number in the kernel's maps and records: [`Names`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ambit_core::mesh::{Mesh, Touched};
use ambit_core::model::{Workload, WorkloadUid};
use ambit_loader::WorkloadNumber;
use parking_lot::RwLock;

/// How many released pods are remembered: records arrive a moment after a pod was released, and its
/// connections may take longer to end.
const LEFT: usize = 4096;

/// The numbers of this node's enrolments, and of the last that ended.
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
    /// As the mesh said last: the workload may have left the mesh when its connections end.
    workload: Option<Arc<Workload>>,
}

impl Names {
    /// Starts with what earlier daemons enrolled.
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

    /// Follows what the mesh says of enrolled workloads.
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

    /// All that are enrolled, whether or not this daemon serves them yet.
    pub(crate) fn all_enrolled(&self) -> Vec<(WorkloadNumber, WorkloadUid)> {
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
mod tests;
