//! Rotation of the root: which one signs and which are trusted, as a pure state machine. No connection is
//! refused because the root changes:
//!
//! 1. A new root is first only trusted: it is added to the bundle that daemons read. It signs after the
//!    bundle has been written and a wait, long enough for every node to have read it.
//! 2. The old one stays in the bundle until the last certificate that it signed has expired; until then it
//!    also signs the controller's own server certificate, which daemons with an old bundle accept too.
//!
//! A CA that can no longer sign is replaced at once ([`State::replace_unusable`]): no daemon trusts what it
//! signs, so there is nothing to wait for. A root that was created here is followed by another in its last
//! year.
//!
//! One replica at a time takes steps ([`State::step`]); all replicas follow what it writes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Error;
use super::material::Material;

/// For differences of clocks, and replicas that learn of a change late.
const MARGIN: Duration = Duration::from_mins(10);

/// Seconds since 1970.
type Seconds = u64;

/// The state in the Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Signs for workloads.
    current: Material,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Next>,
    /// Still trusted, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<Retired>,
    /// The last request for a new root that was granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    granted: Option<String>,
    /// The fingerprint of the user's own CA that was adopted last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    own: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Next {
    material: Material,
    /// When the bundle with it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trusted_since: Option<Seconds>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Retired {
    material: Material,
    until: Seconds,
}

/// The durations of a rotation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// How long a new root is only trusted.
    pub(crate) trust_wait: Duration,
    /// The longest lifetime of a certificate that a root signs.
    pub(crate) longest: Duration,
}

/// The input of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) now: SystemTime,
    /// The value of the annotation that requests a new root.
    pub(crate) request: Option<&'a str>,
    /// The user's own CA, if there is one and it can be used.
    pub(crate) own: Option<&'a Material>,
    /// The bundle that daemons read now.
    pub(crate) published: Option<&'a str>,
    /// Whether the CA that signs for workloads still can, at `now`.
    pub(crate) can_sign: bool,
}

impl State {
    /// The first state: with the user's own CA, if there is one.
    pub(crate) fn first(
        made: impl FnOnce() -> Result<Material, Error>,
        facts: &Facts<'_>,
    ) -> Result<Self, Error> {
        let current = facts.own.map_or_else(made, |own| Ok(own.clone()))?;
        let own = facts.own.map(Material::fingerprint);
        Ok(Self { current, next: None, retired: Vec::new(), granted: facts.request.map(str::to_owned), own })
    }

    /// The CA that signs for workloads.
    pub(crate) fn signing(&self) -> &Material {
        &self.current
    }

    /// The CA that signs for the controller's own server: the oldest that daemons still trust.
    pub(crate) fn serving(&self) -> &Material {
        self.retired.first().map_or(&self.current, |retired| &retired.material)
    }

    /// Every trusted root, the signing one first.
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

    /// The next state, if a step is due now. `make` creates a root, `renew` an intermediate if that is due.
    pub(crate) fn step(
        &self,
        facts: &Facts<'_>,
        pace: Pace,
        make: impl FnOnce() -> Result<Material, Error>,
        renew: impl FnOnce(&Material) -> Result<Option<Material>, Error>,
    ) -> Result<Option<Self>, Error> {
        let mut new = self.clone();
        if !facts.can_sign {
            new.replace_unusable(facts, make, renew)?;
            return Ok((new != *self).then_some(new));
        }
        new.adopt_own(facts, pace);
        new.grant(facts, make)?;
        new.advance(facts, pace);
        let now = seconds(facts.now);
        new.retired.retain(|retired| now < retired.until);
        if let Some(renewed) = renew(&new.current)? {
            new.current = renewed;
        }
        Ok((new != *self).then_some(new))
    }

    /// Replaces the CA that signs and can no longer: by the user's own, by another intermediate under the
    /// same root, by the CA that was to follow, or by a new root. One that has not expired is only
    /// replaced by the user's own: what is wrong with it may be mended.
    fn replace_unusable(
        &mut self,
        facts: &Facts<'_>,
        make: impl FnOnce() -> Result<Material, Error>,
        renew: impl FnOnce(&Material) -> Result<Option<Material>, Error>,
    ) -> Result<(), Error> {
        let lives = |material: &Material| material.not_after().is_ok_and(|end| facts.now < end);
        let expired = self.current.not_after().is_ok_and(|end| end <= facts.now);
        let next = self.next.take().map(|next| next.material);
        let material = if let Some(own) = facts.own {
            self.own = Some(own.fingerprint());
            own.clone()
        } else if !expired {
            return Ok(());
        } else if let Some(renewed) = renew(&self.current)? {
            renewed
        } else {
            next.filter(lives).map_or_else(make, Ok)?
        };
        self.current = material;
        self.retired.retain(|retired| lives(&retired.material));
        Ok(())
    }

    /// When the next step is due by time alone.
    pub(crate) fn due(&self, pace: Pace) -> Option<SystemTime> {
        let wait = pace.trust_wait.as_secs();
        let next = self.next.iter().filter_map(|next| Some(next.trusted_since? + wait));
        let all = next.chain(self.retired.iter().map(|retired| retired.until));
        let first = all.min().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        let root = self.current.root_renewal().ok().flatten().filter(|_| self.next.is_none());
        let renewals = self.current.renewal().ok().flatten().into_iter().chain(root);
        first.into_iter().chain(renewals).chain(self.current.not_after().ok()).min()
    }

    /// Adopts a new CA of the user: at once if daemons trust its roots already.
    fn adopt_own(&mut self, facts: &Facts<'_>, pace: Pace) {
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

    /// Whether daemons trust all of its roots already: they are those of a present or former CA.
    fn has_trusted(&self, own: &Material, facts: &Facts<'_>) -> bool {
        let retired = self.retired.iter().map(|retired| &retired.material);
        let known: Vec<String> =
            std::iter::once(&self.current).chain(retired).flat_map(Material::roots).collect();
        let published = facts.published.unwrap_or_default();
        own.roots().iter().all(|root| known.contains(root) && published.contains(root.as_str()))
    }

    /// Creates a requested root, not while the user's own CA is in use; and one that the present root's end
    /// demands.
    fn grant(
        &mut self,
        facts: &Facts<'_>,
        make: impl FnOnce() -> Result<Material, Error>,
    ) -> Result<(), Error> {
        let Some(request) = facts.request.filter(|request| self.granted.as_deref() != Some(*request)) else {
            let due = self.current.root_renewal()?.is_some_and(|due| due <= facts.now);
            if due && self.next.is_none() {
                tracing::warn!("root in its last year: another is created");
                self.next = Some(Next { material: make()?, trusted_since: None });
            }
            return Ok(());
        };
        self.granted = Some(request.to_owned());
        if facts.own.is_some() {
            tracing::error!(request, "root rotation refused; replace the user's own CA instead");
            return Ok(());
        }
        self.next = Some(Next { material: make()?, trusted_since: None });
        Ok(())
    }

    /// Moves the next CA from written to trusted, and from trusted to signing.
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
mod tests;
