//! The CA's keys in the cluster: a Secret that every replica follows, and the bundle of roots in a ConfigMap
//! that daemons read. The leading replica takes the steps of [`crate::ca::rotation`]; the first replica
//! creates the keys, and any replaces a CA that has expired: nothing starts without one that signs.
//!
//! Entry points: [`Keeper::open`], then [`Keeper::keep`].

mod stored;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::model::TrustDomain;
use ambit_daemon_kit::admin;
use ambit_kube::error::{chain, is_conflict, is_gone};
use ambit_kube::object;
use ambit_kube::retry::{RequestError, until_done, within};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use tokio::sync::watch;

use self::stored::{
    DEADLINE, Error, api_error, get, read, requested_rotation, usable, user_ca, watched, write,
};
use crate::ca::material::Material;
use crate::ca::rotation::{Facts, Pace, State};
use crate::ca::{self, Authorities, Signing};
use crate::config::Config;
use crate::config::kubernetes::Settings;
use crate::telemetry::CAS_REPLACED;

/// The ConfigMap's key with the bundle.
pub(super) const BUNDLE: &str = "root.pem";
/// Before the next attempt.
const PAUSE: Duration = Duration::from_secs(2);
/// The longest sleep: the wall clock may jump.
const MAX_SLEEP: Duration = Duration::from_mins(1);
/// The shortest: what is due and does nothing must not keep the replica busy.
const MIN_SLEEP: Duration = Duration::from_secs(1);

/// Keeps the CA.
#[derive(Debug)]
pub(crate) struct Keeper {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    settings: Settings,
    trust_domain: TrustDomain,
    pace: Pace,
    state: State,
    secret: Secret,
    own: Option<Secret>,
    config_map: Option<ConfigMap>,
    /// Why the user's own CA cannot be used, as logged last.
    own_error: Option<String>,
    signing: watch::Sender<Signing>,
}

impl Keeper {
    /// Reads the CA, creating it the first time; with new attempts until one succeeds.
    pub(crate) async fn open(
        client: Client,
        config: &Config,
        settings: &Settings,
        ready: &admin::Condition,
    ) -> (Self, Authorities) {
        let failed = |error: Error| match &error {
            // Another replica has created it in the meantime.
            Error::Api { source: RequestError::Api(source), .. } if is_conflict(source) => Duration::ZERO,
            _ => {
                let error = chain(&error);
                tracing::error!(error, "failed to open the CA");
                ready.unmet(error);
                PAUSE
            }
        };
        until_done(async || Self::try_open(client.clone(), config, settings).await, failed).await
    }

    async fn try_open(
        client: Client,
        config: &Config,
        settings: &Settings,
    ) -> Result<(Self, Authorities), Error> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &settings.namespace);
        let config_maps: Api<ConfigMap> = Api::namespaced(client, &settings.namespace);
        let trust_domain = config.derive.trust_domain.clone();
        let pace = Pace { trust_wait: settings.root_trust_wait, longest: config.max_certificate_ttl };
        let own = get(&secrets, &settings.own_ca_secret).await?;
        let config_map = get(&config_maps, &settings.root_config_map).await?;
        let (secret, state) = first(&secrets, settings, own.as_ref(), &trust_domain, pace).await?;
        let (secret, state, signing) = match signing(&state, &trust_domain, pace) {
            Ok(signing) => (secret, state, signing),
            Err(error) => {
                let own = own.as_ref().and_then(|own| usable(own, &trust_domain, pace).ok());
                let now = SystemTime::now();
                let facts = Facts { now, request: None, own: own.as_ref(), published: None, can_sign: false };
                let replaced = step(&state, &facts, pace, &trust_domain)?.ok_or(error)?;
                let signing = signing_of_replaced(&state, &replaced, &trust_domain, pace)?;
                let secret = write(&secrets, &settings.ca_secret, &secret, &replaced).await?;
                (secret, replaced, signing)
            }
        };
        let (signing, authorities) = watch::channel(signing);
        let mut keeper = Self {
            secrets,
            config_maps,
            settings: settings.clone(),
            trust_domain,
            pace,
            state,
            secret,
            own,
            config_map,
            own_error: None,
            signing,
        };
        // Daemons wait for it. Only the leader changes an existing one.
        if keeper.published().is_none() {
            keeper.publish().await?;
        }
        Ok((keeper, authorities))
    }

    /// Follows the Secrets and, while this replica leads, takes the steps that are due.
    pub(crate) async fn keep(mut self, mut leads: watch::Receiver<bool>) {
        let mut secrets = watched(&self.secrets, &self.settings.ca_secret);
        let mut owns = watched(&self.secrets, &self.settings.own_ca_secret);
        let mut config_maps = watched(&self.config_maps, &self.settings.root_config_map);
        loop {
            let mut rest = self.rest();
            if *leads.borrow_and_update()
                && let Err(error) = self.act().await
            {
                tracing::error!(error = chain(&error), "failed to take a rotation step");
                rest = PAUSE;
            }
            tokio::select! {
                Some(secret) = secrets.next() => self.follow(secret),
                Some(own) = owns.next() => self.own = own,
                Some(config_map) = config_maps.next() => self.config_map = config_map,
                Ok(()) = leads.changed() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// How long there is nothing to do.
    fn rest(&self) -> Duration {
        let due = self.state.due(self.pace);
        let left = due.map_or(MAX_SLEEP, |due| due.duration_since(SystemTime::now()).unwrap_or_default());
        left.clamp(MIN_SLEEP, MAX_SLEEP)
    }

    /// Adopts the state of the Secret. One that cannot be used, or is deleted, changes nothing.
    fn follow(&mut self, secret: Option<Secret>) {
        let Some(secret) = secret else {
            tracing::error!(secret = self.settings.ca_secret, "CA Secret deleted; the CA stays unchanged");
            self.secret.metadata.resource_version = None;
            return;
        };
        let taken = read(&secret, &self.settings.ca_secret).and_then(|state| match state {
            Some(state) if state != self.state => self.take(state),
            _ => Ok(()),
        });
        self.secret = secret;
        if let Err(error) = taken {
            tracing::error!(error = chain(&error), "failed to use the CA Secret; the CA stays unchanged");
        }
    }

    fn take(&mut self, state: State) -> Result<(), Error> {
        let signing = signing(&state, &self.trust_domain, self.pace)?;
        if state.signing() != self.state.signing() {
            tracing::info!(fingerprint = state.signing().fingerprint(), "signing CA changed");
        }
        self.signing.send_replace(signing);
        self.state = state;
        Ok(())
    }

    /// Takes the rotation steps that are due.
    async fn act(&mut self) -> Result<(), Error> {
        let own = self.own();
        loop {
            if self.published().as_deref() != Some(self.state.bundle().as_str()) {
                self.publish().await?;
            }
            let published = self.published();
            let now = SystemTime::now();
            let facts = Facts {
                now,
                request: requested_rotation(&self.secret),
                own: own.as_ref(),
                published: published.as_deref(),
                can_sign: self.state.signing().not_after()? > now,
            };
            let next = step(&self.state, &facts, self.pace, &self.trust_domain)?;
            let lost = self.secret.metadata.resource_version.is_none();
            let Some(state) = next.or_else(|| lost.then(|| self.state.clone())) else { return Ok(()) };
            // A state that cannot sign is not written.
            if facts.can_sign {
                signing(&state, &self.trust_domain, self.pace)?;
            } else {
                signing_of_replaced(&self.state, &state, &self.trust_domain, self.pace)?;
            }
            self.secret = write(&self.secrets, &self.settings.ca_secret, &self.secret, &state).await?;
            self.take(state)?;
        }
    }

    /// The user's own CA, if there is one and it can be used. An error is logged once.
    fn own(&mut self) -> Option<Material> {
        let own = self.own.as_ref().map(|secret| usable(secret, &self.trust_domain, self.pace));
        let own_error = own.as_ref().and_then(|own| own.as_ref().err()).map(|error| chain(error));
        if own_error != self.own_error {
            if let Some(error) = &own_error {
                tracing::error!(
                    secret = self.settings.own_ca_secret,
                    error,
                    "failed to use the user's own CA"
                );
            }
            self.own_error = own_error;
        }
        own?.ok()
    }

    /// The bundle that daemons read.
    fn published(&self) -> Option<String> {
        self.config_map.as_ref()?.data.as_ref()?.get(BUNDLE).cloned()
    }

    /// Writes the bundle. After a conflict, reads the other's.
    async fn publish(&mut self) -> Result<(), Error> {
        let name = &self.settings.root_config_map;
        let mut config_map = self.config_map.clone().unwrap_or_default();
        config_map.metadata.name = Some(name.clone());
        config_map.metadata.managed_fields = None;
        config_map.data.get_or_insert_default().insert(BUNDLE.to_owned(), self.state.bundle());
        self.config_map = match within(DEADLINE, object::write(&self.config_maps, &config_map)).await {
            Ok(config_map) => Some(config_map),
            Err(RequestError::Api(error)) if is_gone(&error) => get(&self.config_maps, name).await?,
            Err(source) => return Err(api_error("write", format!("ConfigMap {name}"))(source)),
        };
        Ok(())
    }
}

/// The state of the Secret, or a new one.
async fn first(
    secrets: &Api<Secret>,
    settings: &Settings,
    own: Option<&Secret>,
    trust_domain: &TrustDomain,
    pace: Pace,
) -> Result<(Secret, State), Error> {
    let name = &settings.ca_secret;
    let secret = get(secrets, name).await?.unwrap_or_default();
    if let Some(state) = read(&secret, name)? {
        return Ok((secret, state));
    }
    let own = own.map(user_ca).transpose()?;
    let now = SystemTime::now();
    let request = requested_rotation(&secret);
    let facts = Facts { now, request, own: own.as_ref(), published: None, can_sign: true };
    let state = State::first(|| Material::make(trust_domain, now), &facts)?;
    signing(&state, trust_domain, pace)?;
    // Another replica may be faster: the next attempt reads what it wrote.
    let secret = write(secrets, name, &secret, &state).await?;
    tracing::info!(secret = name, own = own.is_some(), "CA created");
    Ok((secret, state))
}

/// The step that is due, if one is.
fn step(
    state: &State,
    facts: &Facts<'_>,
    pace: Pace,
    trust_domain: &TrustDomain,
) -> Result<Option<State>, ca::Error> {
    let make = || Material::make(trust_domain, facts.now);
    let renew = |material: &Material| material.renewed(trust_domain, facts.now);
    state.step(facts, pace, make, renew)
}

/// Who signs in a state that replaces one which no longer can. Said loudly: until daemons have read the new
/// roots, they refuse what it signs.
fn signing_of_replaced(
    old: &State,
    new: &State,
    trust_domain: &TrustDomain,
    pace: Pace,
) -> Result<Signing, Error> {
    let signing = signing(new, trust_domain, pace)?;
    let (expired, replacement) = (old.signing().fingerprint(), new.signing().fingerprint());
    let same_roots = old.signing().roots() == new.signing().roots();
    tracing::error!(expired, replacement, same_roots, "CA could not sign any more: replaced at once");
    CAS_REPLACED.count();
    Ok(signing)
}

/// Who signs in a state.
fn signing(state: &State, trust_domain: &TrustDomain, pace: Pace) -> Result<Signing, Error> {
    let now = SystemTime::now();
    let expired_roots = state.signing().expired_roots(now);
    if expired_roots > 0 {
        let fingerprint = state.signing().fingerprint();
        tracing::warn!(fingerprint, expired_roots, "expired roots of the CA are ignored");
    }
    let authority = |material: &Material| material.authority(trust_domain, pace.longest, now).map(Arc::new);
    let workloads = authority(state.signing())?;
    // An old one that has expired cannot sign any more.
    let serving = authority(state.serving()).unwrap_or_else(|_| workloads.clone());
    Ok(Signing { workloads, serving })
}

#[cfg(test)]
mod tests;
