//! Who is enrolled, as a pure state machine: what sources say becomes what is to be done.
//!
//! A pod found in the kernel after a restart of the daemon is enrolled but not *live* (nobody listens for it)
//! until a source hands over its namespace again.

use std::collections::{BTreeMap, BTreeSet};

use ambit_enrol::SourceName;
use ambit_loader::NetnsCookie;
use serde::{Deserialize, Serialize};

/// Which source enrolled which workload: kept over restarts, since the kernel's maps do not say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Owners(pub(crate) BTreeMap<String, SourceName>);

/// One enrolled workload.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    cookie: NetnsCookie,
    /// `None`: enrolled by an earlier daemon, and who asked for it is not known any more.
    owner: Option<SourceName>,
    live: bool,
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0} is not enrolled")]
    Unknown(String),
    #[error("{0} was enrolled by an earlier daemon, which took its sockets with it: add it again")]
    NotLive(String),
    #[error("{uid} belongs to source {owner}")]
    Foreign { uid: String, owner: SourceName },
}

/// A workload that is to be released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) uid: String,
    pub(crate) cookie: NetnsCookie,
}

/// The state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Enrolment {
    pods: BTreeMap<String, Entry>,
    /// What each source has named since its hello.
    named: BTreeMap<SourceName, BTreeSet<String>>,
}

impl Enrolment {
    /// Starts from what the kernel holds.
    pub(crate) fn recover(pods: impl IntoIterator<Item = (NetnsCookie, String)>, owners: &Owners) -> Self {
        let entry = |(cookie, uid): (NetnsCookie, String)| {
            let owner = owners.0.get(&uid).cloned();
            (uid, Entry { cookie, owner, live: false })
        };
        Self { pods: pods.into_iter().map(entry).collect(), named: BTreeMap::new() }
    }

    /// A source begins its snapshot.
    pub(crate) fn hello(&mut self, source: &SourceName) {
        self.named.insert(source.clone(), BTreeSet::new());
    }

    /// What must go before the workload can be enrolled in this namespace: its own earlier namespace, and
    /// whoever was enrolled in this one (the source knows better than we do who lives there now).
    pub(crate) fn displaced(&self, uid: &str, cookie: NetnsCookie) -> Vec<Release> {
        let displaced = |(name, entry): &(&String, &Entry)| (*name == uid) != (entry.cookie == cookie);
        let release = |(uid, entry): (&String, &Entry)| Release { uid: uid.clone(), cookie: entry.cookie };
        self.pods.iter().filter(displaced).map(release).collect()
    }

    /// Whether the workload is enrolled in this namespace already, by this daemon or an earlier one.
    pub(crate) fn holds(&self, uid: &str, cookie: NetnsCookie) -> bool {
        self.pods.get(uid).is_some_and(|entry| entry.cookie == cookie)
    }

    /// The workload is enrolled and its listeners are up.
    pub(crate) fn added(&mut self, source: &SourceName, uid: &str, cookie: NetnsCookie) {
        let entry = Entry { cookie, owner: Some(source.clone()), live: true };
        self.pods.insert(uid.to_owned(), entry);
        self.name(source, uid);
    }

    /// The source says that the workload stays.
    pub(crate) fn keep(&mut self, source: &SourceName, uid: &str) -> Result<(), Refusal> {
        let entry = self.pods.get_mut(uid).ok_or_else(|| Refusal::Unknown(uid.to_owned()))?;
        match &entry.owner {
            Some(owner) if owner != source => {
                return Err(Refusal::Foreign { uid: uid.to_owned(), owner: owner.clone() });
            }
            Some(_) => {}
            None => entry.owner = Some(source.clone()),
        }
        let live = entry.live;
        // It stays in either case: a snapshot that says `keep` must not release what it could not serve.
        self.name(source, uid);
        if live { Ok(()) } else { Err(Refusal::NotLive(uid.to_owned())) }
    }

    /// The source says that the workload leaves. One that is not there has left already.
    pub(crate) fn delete(&self, source: &SourceName, uid: &str) -> Result<Option<Release>, Refusal> {
        let Some(entry) = self.pods.get(uid) else { return Ok(None) };
        match &entry.owner {
            Some(owner) if owner != source => {
                Err(Refusal::Foreign { uid: uid.to_owned(), owner: owner.clone() })
            }
            _ => Ok(Some(Release { uid: uid.to_owned(), cookie: entry.cookie })),
        }
    }

    /// The source has named all it knows: what was its and is not named, and what is nobody's, leaves.
    pub(crate) fn snapshot_sent(&self, source: &SourceName) -> Vec<Release> {
        let named = self.named.get(source);
        let leaves = |(uid, entry): &(&String, &Entry)| {
            entry.owner.as_ref().is_none_or(|owner| owner == source)
                && !named.is_some_and(|named| named.contains(*uid))
        };
        let release = |(uid, entry): (&String, &Entry)| Release { uid: uid.clone(), cookie: entry.cookie };
        self.pods.iter().filter(leaves).map(release).collect()
    }

    /// The workload is released.
    pub(crate) fn released(&mut self, uid: &str) {
        self.pods.remove(uid);
        for named in self.named.values_mut() {
            named.remove(uid);
        }
    }

    /// How many workloads are enrolled, but nobody listens for them: their sources have not come back yet.
    pub(crate) fn waiting(&self) -> usize {
        self.pods.values().filter(|entry| !entry.live).count()
    }

    /// What is to be kept over a restart.
    pub(crate) fn owners(&self) -> Owners {
        let owned = |(uid, entry): (&String, &Entry)| Some((uid.clone(), entry.owner.clone()?));
        Owners(self.pods.iter().filter_map(owned).collect())
    }

    fn name(&mut self, source: &SourceName, uid: &str) {
        self.named.entry(source.clone()).or_default().insert(uid.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str) -> SourceName {
        name.parse().unwrap()
    }

    fn release(uid: &str, cookie: u64) -> Release {
        Release { uid: uid.to_owned(), cookie: NetnsCookie(cookie) }
    }

    /// What the kernel holds: cookies are counted from 1.
    fn held(uids: &[&str]) -> Vec<(NetnsCookie, String)> {
        (1..).map(NetnsCookie).zip(uids.iter().map(|uid| (*uid).to_owned())).collect()
    }

    /// A daemon that enrolled a (1), b (2) for cni and c (3) for run, and was restarted.
    fn recovered() -> Enrolment {
        let mut before = Enrolment::default();
        for (who, uid, cookie) in [("cni", "a", 1), ("cni", "b", 2), ("run", "c", 3)] {
            before.hello(&source(who));
            before.added(&source(who), uid, NetnsCookie(cookie));
        }
        let owners = serde_json::to_string(&before.owners()).unwrap();
        let owners = serde_json::from_str(&owners).unwrap();
        Enrolment::recover(held(&["a", "b", "c"]), &owners)
    }

    #[test]
    fn a_snapshot_releases_only_what_its_source_no_longer_names() {
        let mut state = recovered();
        let cni = source("cni");
        assert_eq!(state.waiting(), 3);
        state.hello(&cni);
        state.added(&cni, "a", NetnsCookie(1));
        assert_eq!(state.waiting(), 2);
        assert_eq!(state.snapshot_sent(&cni), [release("b", 2)]);
        state.released("b");
        assert_eq!(state.waiting(), 1, "c's source has not come back");
        assert_eq!(state.snapshot_sent(&cni), []);
        assert_eq!(state.owners().0.len(), 2, "c stays the other source's");
    }

    #[test]
    fn a_snapshot_releases_what_nobody_owns() {
        let mut state = Enrolment::recover(held(&["a", "b"]), &Owners::default());
        let cni = source("cni");
        state.hello(&cni);
        assert_eq!(state.keep(&cni, "b"), Err(Refusal::NotLive("b".to_owned())));
        assert_eq!(state.snapshot_sent(&cni), [release("a", 1)]);
    }

    #[test]
    fn a_new_hello_begins_a_new_snapshot() {
        let mut state = recovered();
        let cni = source("cni");
        for uid in ["a", "b"] {
            state.hello(&cni);
            state.added(&cni, uid, NetnsCookie(if uid == "a" { 1 } else { 2 }));
        }
        assert_eq!(state.snapshot_sent(&cni), [release("a", 1)]);
    }

    #[test]
    fn keep_needs_a_live_workload_of_the_same_source() {
        let mut state = recovered();
        let (cni, run) = (source("cni"), source("run"));
        assert_eq!(state.keep(&cni, "x"), Err(Refusal::Unknown("x".to_owned())));
        assert_eq!(state.keep(&run, "a"), Err(Refusal::Foreign { uid: "a".to_owned(), owner: cni.clone() }));
        assert_eq!(state.keep(&cni, "a"), Err(Refusal::NotLive("a".to_owned())));
        state.added(&cni, "a", NetnsCookie(1));
        assert_eq!(state.keep(&cni, "a"), Ok(()));
    }

    #[test]
    fn delete_is_idempotent_and_the_owners_alone() {
        let mut state = recovered();
        let (cni, run) = (source("cni"), source("run"));
        assert!(matches!(state.delete(&run, "a"), Err(Refusal::Foreign { .. })));
        assert_eq!(state.delete(&cni, "a"), Ok(Some(release("a", 1))));
        state.released("a");
        assert_eq!(state.delete(&cni, "a"), Ok(None));
    }

    #[test]
    fn a_new_namespace_displaces_the_old_one_and_a_new_name_the_old_name() {
        let state = recovered();
        assert_eq!(state.displaced("a", NetnsCookie(1)), [], "the same again");
        assert_eq!(state.displaced("a", NetnsCookie(9)), [release("a", 1)], "restarted in a new namespace");
        assert_eq!(
            state.displaced("z", NetnsCookie(2)),
            [release("b", 2)],
            "the namespace has another tenant"
        );
        assert_eq!(state.displaced("a", NetnsCookie(2)), [release("a", 1), release("b", 2)], "both");
        assert!(
            state.holds("a", NetnsCookie(1))
                && !state.holds("a", NetnsCookie(2))
                && !state.holds("z", NetnsCookie(1))
        );
    }
}
