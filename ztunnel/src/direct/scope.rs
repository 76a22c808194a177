//! Which open connections are to be rechecked: [`Scope`].

use std::collections::BTreeSet;

use ambit_core::model::WorkloadUid;

/// Destinations whose open connections are to be rechecked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Every destination.
    All,
    /// These.
    Destinations(BTreeSet<WorkloadUid>),
}

impl Scope {
    pub(super) fn none() -> Self {
        Self::Destinations(BTreeSet::new())
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Destinations(uids) if uids.is_empty())
    }

    pub(super) fn contains(&self, uid: &WorkloadUid) -> bool {
        match self {
            Self::All => true,
            Self::Destinations(uids) => uids.contains(uid),
        }
    }

    pub(super) fn join(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Destinations(uids), Self::Destinations(more)) => uids.extend(more),
            (_, Self::All) => *self = Self::All,
            (Self::All, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use ambit_proxy::testing::uid;

    use super::*;

    #[test]
    fn joined_scope_covers_both() {
        let scope = |names: &[&str]| Scope::Destinations(names.iter().map(|name| uid(name)).collect());
        let rows = [
            ("both", scope(&["a"]), scope(&["b"]), scope(&["a", "b"])),
            ("nothing more", scope(&["a"]), Scope::none(), scope(&["a"])),
            ("all", scope(&["a"]), Scope::All, Scope::All),
            ("all already", Scope::All, scope(&["a"]), Scope::All),
        ];
        for (name, mut joined, more, expected) in rows {
            joined.join(more);
            assert_eq!(joined, expected, "{name}");
        }
        assert!(Scope::none().is_empty() && !Scope::All.is_empty());
    }
}
