//! Which root signs, and which are trusted, over time: a pure state machine. Nobody is refused because a root
//! changes:
//!
//! 1. A new root is first only trusted: it enters the bundle that daemons read, and after that was written
//!    and a wait (long enough for every node to have read it) it signs.
//! 2. The old one stays in the bundle until the last certificate it signed has ended; until then it also
//!    signs the controller's own server certificate, which daemons with an old bundle accept too.
//!
//! One replica at a time takes steps ([`State::step`]); all of them follow what it writes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Error;
use super::material::Material;

/// Clocks differ, and a replica may hear of a change late.
const MARGIN: Duration = Duration::from_mins(10);

/// Seconds since 1970.
type Seconds = u64;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Signs for workloads.
    current: Material,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Next>,
    /// Trusted still, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Retired>,
    /// The wish for a new root that was granted last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    granted: Option<String>,
    /// The fingerprint of the user's own CA that was taken over last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    own: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Next {
    material: Material,
    /// Since when the bundle with it can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trusted_since: Option<Seconds>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Retired {
    material: Material,
    until: Seconds,
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// How long a new root is only trusted.
    pub(crate) trust_wait: Duration,
    /// The longest life of what a root signs.
    pub(crate) longest: Duration,
}

/// What the world looks like when a step is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) now: SystemTime,
    /// The annotation that asks for a new root, whatever it says.
    pub(crate) wish: Option<&'a str>,
    /// The user's own CA, if there is one and it can be used.
    pub(crate) own: Option<&'a Material>,
    /// The bundle that daemons can read now.
    pub(crate) published: Option<&'a str>,
}

impl State {
    /// The first: the user's own CA, if there is one.
    pub(crate) fn first(
        made: impl FnOnce() -> Result<Material, Error>,
        facts: &Facts<'_>,
    ) -> Result<Self, Error> {
        let current = facts.own.map_or_else(made, |own| Ok(own.clone()))?;
        let own = facts.own.map(Material::fingerprint);
        Ok(Self { current, next: None, retired: Vec::new(), granted: facts.wish.map(str::to_owned), own })
    }

    /// Signs for workloads.
    pub(crate) fn signing(&self) -> &Material {
        &self.current
    }

    /// Signs for the controller's own server: the oldest that daemons still trust.
    pub(crate) fn serving(&self) -> &Material {
        self.retired.first().map_or(&self.current, |retired| &retired.material)
    }

    /// Every root that may vouch, the one that signs first.
    pub(crate) fn bundle(&self) -> String {
        let next = self.next.iter().map(|next| &next.material);
        let retired = self.retired.iter().map(|retired| &retired.material);
        let mut roots: Vec<String> = Vec::new();
        for root in std::iter::once(&self.current).chain(next).chain(retired).flat_map(Material::roots) {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        roots.concat()
    }

    /// The state that follows, if there is something to be done now. `make` makes a root, `renew` an
    /// intermediate where that is due.
    pub(crate) fn step(
        &self,
        facts: &Facts<'_>,
        pace: Pace,
        make: impl FnOnce() -> Result<Material, Error>,
        renew: impl FnOnce(&Material) -> Result<Option<Material>, Error>,
    ) -> Result<Option<Self>, Error> {
        let mut new = self.clone();
        new.take_over_own(facts, pace);
        new.grant(facts, make)?;
        new.advance(facts, pace);
        let now = seconds(facts.now);
        new.retired.retain(|retired| now < retired.until);
        if let Some(renewed) = renew(&new.current)? {
            new.current = renewed;
        }
        Ok((new != *self).then_some(new))
    }

    /// When time alone will ask for a step.
    pub(crate) fn due(&self, pace: Pace) -> Option<SystemTime> {
        let wait = pace.trust_wait.as_secs();
        let next = self.next.iter().filter_map(|next| Some(next.trusted_since? + wait));
        let all = next.chain(self.retired.iter().map(|retired| retired.until));
        let first = all.min().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        first.into_iter().chain(self.current.renewal().ok()).min()
    }

    /// The user's own CA replaces what there is; at once where nobody has to learn to trust it.
    fn take_over_own(&mut self, facts: &Facts<'_>, pace: Pace) {
        let Some(own) = facts.own else { return };
        let fingerprint = own.fingerprint();
        if self.own.as_ref() == Some(&fingerprint) {
            return;
        }
        self.own = Some(fingerprint);
        if own.roots() == self.current.roots() {
            self.next = None;
            self.current = own.clone();
        } else if self.has_trusted(own, facts) {
            self.next = None;
            self.replace(own.clone(), facts, pace);
        } else {
            self.next = Some(Next { material: own.clone(), trusted_since: None });
        }
    }

    /// Whether everybody trusts all of its roots already: they vouched for what signed before.
    fn has_trusted(&self, own: &Material, facts: &Facts<'_>) -> bool {
        let retired = self.retired.iter().map(|retired| &retired.material);
        let known: Vec<String> =
            std::iter::once(&self.current).chain(retired).flat_map(Material::roots).collect();
        let published = facts.published.unwrap_or_default();
        own.roots().iter().all(|root| known.contains(root) && published.contains(root.as_str()))
    }

    /// A new root where one is wished for; not where the user's own CA is in use: a wish makes no such.
    fn grant(
        &mut self,
        facts: &Facts<'_>,
        make: impl FnOnce() -> Result<Material, Error>,
    ) -> Result<(), Error> {
        let Some(wish) = facts.wish.filter(|wish| self.granted.as_deref() != Some(*wish)) else {
            return Ok(());
        };
        self.granted = Some(wish.to_owned());
        if facts.own.is_some() {
            tracing::error!(wish, "no new root is made: replace your own CA instead");
            return Ok(());
        }
        self.next = Some(Next { material: make()?, trusted_since: None });
        Ok(())
    }

    /// From written to trusted, from trusted to signing.
    fn advance(&mut self, facts: &Facts<'_>, pace: Pace) {
        let bundle = self.bundle();
        let Some(next) = &mut self.next else { return };
        match next.trusted_since {
            None if facts.published == Some(bundle.as_str()) => next.trusted_since = Some(seconds(facts.now)),
            Some(since) if seconds(facts.now) >= since + pace.trust_wait.as_secs() => {
                if let Some(next) = self.next.take() {
                    self.replace(next.material, facts, pace);
                }
            }
            _ => {}
        }
    }

    fn replace(&mut self, material: Material, facts: &Facts<'_>, pace: Pace) {
        let until = seconds(facts.now + pace.longest + MARGIN);
        let old = std::mem::replace(&mut self.current, material);
        self.retired.push(Retired { material: old, until });
    }
}

fn seconds(time: SystemTime) -> Seconds {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
