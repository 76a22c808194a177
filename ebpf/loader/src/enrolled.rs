//! Port rules of enrolled pods, as the maps have them.

use std::collections::BTreeMap;

use ambit_abi::PortRule;

/// The maps' contents for a pod beside its own entry, which is read afresh each time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Enrolled {
    pub(crate) rules: BTreeMap<u16, PortRule>,
}
