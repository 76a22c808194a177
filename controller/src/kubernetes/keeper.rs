//! The CA's keys in the cluster: a Secret that every replica follows, the bundle of roots in a ConfigMap that
//! daemons read. The replica that leads takes the steps of [`crate::ca::rotation`]; whoever comes first makes
//! the keys.
//!
//! Way in: [`Keeper::open`], then [`Keeper::keep`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::model::TrustDomain;
use ambit_daemon_kit::admin;
use futures::{Stream, StreamExt};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use crate::ca::material::{Brought, Material};
use crate::ca::rotation::{Facts, Pace, State};
use crate::ca::{self, Authorities, Signing};
use crate::config::Config;
use crate::config::kubernetes::Settings;

/// Where in the Secret the state is.
const STATE: &str = "ca.json";
/// Where in the ConfigMap the bundle is.
const BUNDLE: &str = "root.pem";
/// On the Secret; another value asks for a new root.
const WISH: &str = "ambit.dev/rotate-root";
/// Before trying again what failed.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at the clock: it may jump.
const LOOK: Duration = Duration::from_mins(1);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{operation} {object}")]
    Api { operation: &'static str, object: String, source: Box<kube::Error> },
    #[error("the Secret {0} holds something else under {STATE}")]
    Form(String, #[source] serde_json::Error),
    #[error(transparent)]
    Ca(#[from] ca::Error),
}

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
    /// Why the user's own CA cannot be used, as it was said last.
    complaint: Option<String>,
    signing: watch::Sender<Signing>,
}

impl Keeper {
    /// Reads the CA, making it the first time; again and again until that works.
    pub(crate) async fn open(
        client: Client,
        config: &Config,
        settings: &Settings,
        ready: &admin::Condition,
    ) -> (Self, Authorities) {
        loop {
            match Self::try_open(client.clone(), config, settings).await {
                Ok(opened) => return opened,
                // Another replica made it in the meantime.
                Err(Error::Api { source, .. }) if matches!(&*source, kube::Error::Api(status) if status.code == 409) =>
                    {}
                Err(error) => {
                    let error = crate::error_chain(&error);
                    tracing::error!(%error, "the CA cannot be read");
                    ready.unmet(error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
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
        let signing = signing(&state, &trust_domain, pace)?;
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
            complaint: None,
            signing,
        };
        // Daemons wait for it; only who leads changes one that is there.
        if keeper.published().is_none() {
            keeper.publish().await?;
        }
        Ok((keeper, authorities))
    }

    /// Follows the Secrets and, while it leads, acts.
    pub(crate) async fn keep(mut self, mut leads: watch::Receiver<bool>) {
        let mut secrets = watched(&self.secrets, &self.settings.ca_secret);
        let mut owns = watched(&self.secrets, &self.settings.own_ca_secret);
        let mut config_maps = watched(&self.config_maps, &self.settings.root_config_map);
        loop {
            let mut rest = self.rest();
            if *leads.borrow_and_update()
                && let Err(error) = self.act().await
            {
                tracing::error!(error = %crate::error_chain(&error), "the CA cannot be kept");
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

    /// Until there may be something to do.
    fn rest(&self) -> Duration {
        let due = self.state.due(self.pace);
        let left = due.map_or(LOOK, |due| due.duration_since(SystemTime::now()).unwrap_or_default());
        left.clamp(Duration::from_millis(100), LOOK)
    }

    /// Takes over what the Secret says now. One that cannot be used, or is gone, changes nothing.
    fn follow(&mut self, secret: Option<Secret>) {
        let Some(secret) = secret else {
            tracing::error!(secret = self.settings.ca_secret, "the CA's Secret is gone; it stays as it was");
            self.secret.metadata.resource_version = None;
            return;
        };
        let taken = read(&secret, &self.settings.ca_secret).and_then(|state| match state {
            Some(state) if state != self.state => self.take(state),
            _ => Ok(()),
        });
        self.secret = secret;
        if let Err(error) = taken {
            tracing::error!(error = %crate::error_chain(&error), "the CA stays as it was");
        }
    }

    fn take(&mut self, state: State) -> Result<(), Error> {
        let signing = signing(&state, &self.trust_domain, self.pace)?;
        if state.signing() != self.state.signing() {
            tracing::info!(fingerprint = state.signing().fingerprint(), "another CA signs from now on");
        }
        self.signing.send_replace(signing);
        self.state = state;
        Ok(())
    }

    /// Takes the steps that are due.
    async fn act(&mut self) -> Result<(), Error> {
        let own = self.own();
        loop {
            if self.published().as_deref() != Some(self.state.bundle().as_str()) {
                self.publish().await?;
            }
            let published = self.published();
            let now = SystemTime::now();
            let facts =
                Facts { now, wish: wish(&self.secret), own: own.as_ref(), published: published.as_deref() };
            let make = || Material::make(&self.trust_domain, now);
            let renew = |material: &Material| material.renewed(&self.trust_domain, now);
            let step = self.state.step(&facts, self.pace, make, renew)?;
            let lost = self.secret.metadata.resource_version.is_none();
            let Some(state) = step.or_else(|| lost.then(|| self.state.clone())) else { return Ok(()) };
            // What cannot sign is not written either.
            signing(&state, &self.trust_domain, self.pace)?;
            self.secret = write(&self.secrets, &self.settings.ca_secret, &self.secret, &state).await?;
            self.take(state)?;
        }
    }

    /// The user's own CA, if there is one and it can be used. What is wrong with it is said once.
    fn own(&mut self) -> Option<Material> {
        let own = self.own.as_ref().map(|secret| {
            bring(secret).and_then(|own| {
                own.authority(&self.trust_domain, self.pace.longest, SystemTime::now()).map(|_| own)
            })
        });
        let complaint =
            own.as_ref().and_then(|own| own.as_ref().err()).map(|error| crate::error_chain(error));
        if complaint != self.complaint {
            if let Some(error) = &complaint {
                tracing::error!(secret = self.settings.own_ca_secret, error, "your own CA is not used");
            }
            self.complaint = complaint;
        }
        own?.ok()
    }

    /// The bundle that daemons can read.
    fn published(&self) -> Option<String> {
        self.config_map.as_ref()?.data.as_ref()?.get(BUNDLE).cloned()
    }

    /// Writes the bundle. Somebody else may have done so meanwhile: then that is read again.
    async fn publish(&mut self) -> Result<(), Error> {
        let name = &self.settings.root_config_map;
        let object = || format!("ConfigMap {name}");
        let mut config_map = self.config_map.clone().unwrap_or_default();
        config_map.metadata.name = Some(name.clone());
        config_map.metadata.managed_fields = None;
        config_map.data.get_or_insert_default().insert(BUNDLE.to_owned(), self.state.bundle());
        let parameters = PostParams::default();
        let written = if config_map.metadata.resource_version.is_some() {
            self.config_maps.replace(name, &parameters, &config_map).await
        } else {
            self.config_maps.create(&parameters, &config_map).await
        };
        self.config_map = match written {
            Ok(config_map) => Some(config_map),
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
                get(&self.config_maps, name).await?
            }
            Err(source) => {
                return Err(Error::Api { operation: "writing", object: object(), source: Box::new(source) });
            }
        };
        Ok(())
    }
}

/// The state that is there, or a new one.
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
    let own = own.map(bring).transpose()?;
    let now = SystemTime::now();
    let facts = Facts { now, wish: wish(&secret), own: own.as_ref(), published: None };
    let state = State::first(|| Material::make(trust_domain, now), &facts)?;
    signing(&state, trust_domain, pace)?;
    // Another replica may be faster: then the next attempt reads what it wrote.
    let secret = write(secrets, name, &secret, &state).await?;
    tracing::info!(secret = name, own = own.is_some(), "the CA was made");
    Ok((secret, state))
}

/// Who signs in a state.
fn signing(state: &State, trust_domain: &TrustDomain, pace: Pace) -> Result<Signing, Error> {
    let now = SystemTime::now();
    let authority = |material: &Material| material.authority(trust_domain, pace.longest, now).map(Arc::new);
    let workloads = authority(state.signing())?;
    // An old one that has ended vouches for nobody any more.
    let serving = authority(state.serving()).unwrap_or_else(|_| workloads.clone());
    Ok(Signing { workloads, serving })
}

fn read(secret: &Secret, name: &str) -> Result<Option<State>, Error> {
    let state = secret.data.as_ref().and_then(|data| data.get(STATE));
    let state = state.map(|bytes| serde_json::from_slice(&bytes.0)).transpose();
    state.map_err(|error| Error::Form(name.to_owned(), error))
}

/// Writes the state over the version of the Secret that was read, and no other.
async fn write(secrets: &Api<Secret>, name: &str, old: &Secret, state: &State) -> Result<Secret, Error> {
    let failed = |source| Error::Api {
        operation: "writing",
        object: format!("Secret {name}"),
        source: Box::new(source),
    };
    let text = serde_json::to_vec(state).map_err(|error| Error::Form(name.to_owned(), error))?;
    let mut metadata = old.metadata.clone();
    metadata.managed_fields = None;
    let metadata = if metadata.resource_version.is_some() {
        metadata
    } else {
        ObjectMeta { name: Some(name.to_owned()), annotations: metadata.annotations, ..ObjectMeta::default() }
    };
    let secret = Secret {
        metadata,
        data: Some(BTreeMap::from([(STATE.to_owned(), ByteString(text))])),
        type_: old.type_.clone(),
        ..Secret::default()
    };
    let parameters = PostParams::default();
    if secret.metadata.resource_version.is_some() {
        secrets.replace(name, &parameters, &secret).await.map_err(failed)
    } else {
        secrets.create(&parameters, &secret).await.map_err(failed)
    }
}

fn wish(secret: &Secret) -> Option<&str> {
    secret.metadata.annotations.as_ref()?.get(WISH).map(String::as_str)
}

/// A user's own CA, under Istio's names.
fn bring(secret: &Secret) -> Result<Material, ca::Error> {
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        bytes.and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default()
    };
    Material::bring(Brought {
        ca_cert: text("ca-cert.pem"),
        ca_key: text("ca-key.pem"),
        cert_chain: text("cert-chain.pem"),
        root_cert: text("root-cert.pem"),
    })
}

async fn get<K>(api: &Api<K>, name: &str) -> Result<Option<K>, Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let failed =
        |source| Error::Api { operation: "reading", object: name.to_owned(), source: Box::new(source) };
    api.get_opt(name).await.map_err(failed)
}

/// One object, over and over. Errors are said and tried again.
fn watched<K>(api: &Api<K>, name: &str) -> impl Stream<Item = Option<K>> + Unpin + use<K>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let name = name.to_owned();
    let objects = watcher::watch_object(api.clone(), &name).default_backoff();
    let good = objects.filter_map(move |object| {
        let object = object
            .inspect_err(|error| tracing::warn!(name, error = %crate::error_chain(error), "watching"))
            .ok();
        std::future::ready(object)
    });
    Box::pin(good)
}
