//! Authentication of daemons, and of workloads that ask for their own certificates: a service-account token
//! is reviewed by the API server (TokenReview) and compared with the pod that it is bound to. The node is the
//! pod's.
//!
//! Entry point: [`Reviewer`] as [`Authenticate`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ambit_core::derive;
use ambit_core::model::{Identity, TrustDomain, Workload, WorkloadUid};
use ambit_kube::error::chain;
use ambit_xds::{Authenticate, Caller, NodeName, Unauthenticated, async_trait};
use aws_lc_rs::digest;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::daemons::Daemons;
use super::token::{ACCOUNT_PREFIX, Claims};
use crate::config::kubernetes::Settings;
use crate::shared::{Shared, is_waypoint};
use crate::telemetry::TOKENS_REFUSED;

/// Concurrent reviews.
const CONCURRENCY: usize = 16;
/// The deadline of a review, including the wait for a slot.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a valid token is cached at most: a deleted pod or a revoked token counts soon.
const CACHE_TIME: Duration = Duration::from_mins(1);
/// The cache entry ends this long before the token expires.
const BEFORE_EXPIRY: Duration = Duration::from_secs(10);
/// The size of the cache: more tokens than the largest cluster has daemons.
const CACHE_SIZE: usize = 20_000;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Whose token it is, and the pod that it is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    namespace: String,
    account: String,
    pod: String,
    uid: String,
}

/// Why a token is refused: a reason for the metric, and a message.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refused(&'static str, String);

#[derive(Debug)]
struct Cached {
    bound: Bound,
    until: Instant,
}

/// Reviews tokens, and caches valid ones.
pub(crate) struct Reviewer {
    reviews: Api<TokenReview>,
    audience: String,
    /// `system:serviceaccount:<namespace>:<name>`.
    user: String,
    trust_domain: TrustDomain,
    cluster: String,
    daemons: Arc<Daemons>,
    shared: Arc<Shared>,
    cache: Mutex<HashMap<[u8; 32], Cached>>,
    slots: Semaphore,
}

impl Reviewer {
    pub(crate) fn new(
        client: Client,
        settings: &Settings,
        derive: &derive::Settings,
        daemons: Arc<Daemons>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            reviews: Api::all(client),
            audience: settings.token_audience.clone(),
            user: format!("{ACCOUNT_PREFIX}{}:{}", settings.namespace, settings.ztunnel_service_account),
            trust_domain: derive.trust_domain.clone(),
            cluster: derive.cluster.clone(),
            daemons,
            shared,
            cache: Mutex::default(),
            slots: Semaphore::new(CONCURRENCY),
        }
    }

    /// Reviews a token of `user`; of any service account, if none is given.
    async fn bound(&self, bearer: &str, user: Option<&str>) -> Result<Bound, Unauthenticated> {
        let hash = hash(bearer);
        // The claims prove nothing, but a token that does not even claim to be a fitting one costs no review.
        let claims = Claims::read(bearer)
            .ok_or_else(|| refuse(Refused("form", "the token is not a service account's".to_owned())))?;
        claims.check(user, &self.audience).map_err(|(reason, message)| refuse(Refused(reason, message)))?;
        if let Some(bound) = self.cached(&hash) {
            return Ok(bound);
        }
        let review = async {
            let slot = self.slots.acquire().await;
            // Another call may have reviewed the same token meanwhile.
            if let Some(bound) = self.cached(&hash) {
                return Ok(bound);
            }
            let status = self.review(bearer).await;
            drop(slot);
            let bound = judge(status?, user, &self.audience).map_err(refuse)?;
            self.insert_cached(hash, &bound, claims.expires);
            Ok(bound)
        };
        let late = |_| unavailable("failed to review the token: no answer from the API server in time");
        tokio::time::timeout(DEADLINE, review).await.map_err(late)?
    }

    async fn review(&self, bearer: &str) -> Result<TokenReviewStatus, Unauthenticated> {
        let spec =
            TokenReviewSpec { token: Some(bearer.to_owned()), audiences: Some(vec![self.audience.clone()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        match self.reviews.create(&PostParams::default(), &review).await {
            Ok(review) => Ok(review.status.unwrap_or_default()),
            Err(error) => {
                tracing::warn!(error = chain(&error), "failed to review a token");
                Err(unavailable("failed to review the token"))
            }
        }
    }

    fn cached(&self, hash: &[u8; 32]) -> Option<Bound> {
        let cached = self.cache.lock();
        let found = cached.get(hash).filter(|found| Instant::now() < found.until)?;
        Some(found.bound.clone())
    }

    fn insert_cached(&self, hash: [u8; 32], bound: &Bound, expires: SystemTime) {
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        let until = Instant::now() + CACHE_TIME.min(left.saturating_sub(BEFORE_EXPIRY));
        let mut cached = self.cache.lock();
        if cached.len() >= CACHE_SIZE {
            let now = Instant::now();
            cached.retain(|_, found| now < found.until);
            if cached.len() >= CACHE_SIZE {
                return;
            }
        }
        cached.insert(hash, Cached { bound: bound.clone(), until });
    }

    fn forget(&self, bearer: &str) {
        self.cache.lock().remove(&hash(bearer));
    }
}

impl Reviewer {
    /// The node of a daemon's token.
    async fn daemon(&self, bearer: &str, bound: &Bound) -> Result<NodeName, Unauthenticated> {
        let Some(daemon) = self.daemons.wait_for(&bound.pod).await else {
            self.forget(bearer);
            TOKENS_REFUSED.count(["unknown_pod"]);
            return Err(unavailable("the token's pod is not known or not scheduled yet"));
        };
        let refused = if daemon.uid != bound.uid {
            Some(Refused("other_pod", "the token's pod has been replaced".to_owned()))
        } else if daemon.finished {
            Some(Refused("finished_pod", "the token's pod has finished".to_owned()))
        } else {
            None
        };
        if let Some(refused) = refused {
            self.forget(bearer);
            return Err(refuse(refused));
        }
        Ok(NodeName::new(daemon.node))
    }

    /// A workload, as the mesh knows its pod.
    fn workload(&self, bearer: &str, bound: &Bound) -> Result<Arc<Workload>, Unauthenticated> {
        let uid = WorkloadUid(format!("{}//Pod/{}/{}", self.cluster, bound.namespace, bound.pod).into());
        let mesh = self.shared.mesh.load();
        let Some(workload) = mesh.workload(&uid).filter(|workload| !workload.node.is_empty()) else {
            self.forget(bearer);
            TOKENS_REFUSED.count(["unknown_pod"]);
            return Err(unavailable("the token's pod is not known or not scheduled yet"));
        };
        if *workload.service_account != *bound.account {
            self.forget(bearer);
            return Err(refuse(Refused("other_pod", "the token's pod has been replaced".to_owned())));
        }
        Ok(workload.clone())
    }

    /// The name under which a waypoint gets configuration: its pod's, which cannot be a node's.
    fn waypoint(&self, bearer: &str, bound: &Bound) -> Result<NodeName, Unauthenticated> {
        let workload = self.workload(bearer, bound)?;
        if !is_waypoint(&workload, &self.shared.waypoints.load()) {
            let message = "only daemons and waypoints get configuration".to_owned();
            return Err(refuse(Refused("not_a_waypoint", message)));
        }
        Ok(NodeName::new(format!("{}/{}", bound.namespace, bound.pod)))
    }

    fn is_daemon(&self, bound: &Bound) -> bool {
        format!("{ACCOUNT_PREFIX}{}:{}", bound.namespace, bound.account) == self.user
    }
}

#[async_trait]
impl Authenticate for Reviewer {
    async fn node(&self, bearer: &str) -> Result<NodeName, Unauthenticated> {
        let bound = self.bound(bearer, Some(&self.user)).await?;
        self.daemon(bearer, &bound).await
    }

    async fn subscriber(&self, bearer: &str) -> Result<NodeName, Unauthenticated> {
        let bound = self.bound(bearer, None).await?;
        if self.is_daemon(&bound) { self.daemon(bearer, &bound).await } else { self.waypoint(bearer, &bound) }
    }

    async fn caller(&self, bearer: &str) -> Result<Caller, Unauthenticated> {
        let bound = self.bound(bearer, None).await?;
        let own = Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: bound.namespace.as_str().into(),
            service_account: bound.account.as_str().into(),
        };
        if self.is_daemon(&bound) {
            Ok(Caller::Daemon { node: self.daemon(bearer, &bound).await?, own: Some(own) })
        } else {
            let node = NodeName::new(self.workload(bearer, &bound)?.node.clone());
            Ok(Caller::Workload { node, own })
        }
    }
}

fn refuse(Refused(reason, message): Refused) -> Unauthenticated {
    TOKENS_REFUSED.count([reason]);
    tracing::warn!(reason, error = message, "token refused");
    Unauthenticated::Refused(message)
}

fn unavailable(message: &str) -> Unauthenticated {
    Unauthenticated::Unavailable(message.to_owned())
}

fn hash(bearer: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, bearer.as_bytes()).as_ref());
    bytes
}

/// Whose a reviewed token is, if it is of `user`, or of any service account if none is given.
fn judge(status: TokenReviewStatus, user: Option<&str>, audience: &str) -> Result<Bound, Refused> {
    if status.authenticated != Some(true) {
        let reason = status.error.unwrap_or_else(|| "no reason given".to_owned());
        return Err(Refused(
            "not_authenticated",
            format!("the API server did not authenticate the token: {reason}"),
        ));
    }
    // An API server without support for audiences returns none, and accepts any token.
    if !status.audiences.iter().flatten().any(|known| known == audience) {
        return Err(Refused("audience", format!("the token is not meant for {audience}")));
    }
    let info = status.user.unwrap_or_default();
    let name = info.username.unwrap_or_default();
    if let Some(user) = user.filter(|user| name != *user) {
        return Err(Refused("service_account", format!("the token is of {name}, not of {user}")));
    }
    let account = name.strip_prefix(ACCOUNT_PREFIX).and_then(|account| account.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(Refused("service_account", format!("the token is of {name}, not of a service account")));
    };
    let extra = info.extra.unwrap_or_default();
    let single = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    match (single(POD_NAME), single(POD_UID)) {
        (Some(pod), Some(uid)) => {
            Ok(Bound { namespace: namespace.to_owned(), account: account.to_owned(), pod, uid })
        }
        _ => Err(Refused("no_pod", "the token is not bound to a pod".to_owned())),
    }
}

#[cfg(test)]
mod tests;
