//! Which pods are enrolled, as a pure state machine: what sources say becomes what is to be done.
//!
//! A pod found in the kernel after a restart of the daemon is enrolled but not *live* (it has no listeners)
//! until a source hands over its namespace again.
//!
//! Entry point: [`Enrolment`].

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
    /// `None`: enrolled by an earlier daemon, by a source that is no longer known.
    owner: Option<SourceName>,
    live: bool,
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("failed to keep {0}: it is not enrolled")]
    Unknown(String),
    #[error("failed to keep {0}: an earlier daemon enrolled it and took its sockets along; add it again")]
    NotLive(String),
    #[error("failed to change {uid}: it belongs to source {owner}")]
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

    /// What must be released before the workload can be enrolled in this namespace: its own earlier
    /// namespace, and the workload enrolled in this one so far (the source knows which workload is in it
    /// now).
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

    /// The source has named all it knows: what it owns and did not name, and what has no owner, leaves.
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

    /// How many workloads are enrolled but have no listeners: their sources have not come back yet.
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
mod tests;
