//! Who calls: a daemon's service-account token, checked by the API server (TokenReview) and against the pod
//! it is bound to. The pod's node is the node.
//!
//! Way in: [`Reviewer`] as [`Authenticate`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ambit_xds::{Authenticate, NodeName, Unauthenticated, async_trait};
use aws_lc_rs::digest;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::daemons::Daemons;
use super::token::Claims;
use crate::config::kubernetes::Settings;
use crate::telemetry::TOKENS_REFUSED;

/// Questions to the API server at once.
const REVIEWS: usize = 16;
/// For an answer, the wait for a place included.
const DEADLINE: Duration = Duration::from_secs(5);
/// A yes is remembered this long at most: what is withdrawn (a pod deleted, a token revoked) counts soon.
const REMEMBERED: Duration = Duration::from_mins(1);
/// And not up to the token's very end.
const BEFORE_EXPIRY: Duration = Duration::from_secs(10);
/// Remembered at once; more are daemons of a larger cluster than there is.
const MOST_REMEMBERED: usize = 20_000;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// The pod a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    name: String,
    uid: String,
}

/// Why a token gets nothing: a word for the metric, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refused(&'static str, String);

#[derive(Debug)]
struct Remembered {
    bound: Bound,
    until: Instant,
}

/// Asks the API server, and remembers its yeses for a while.
pub(crate) struct Reviewer {
    reviews: Api<TokenReview>,
    audience: String,
    /// `system:serviceaccount:<namespace>:<name>`.
    user: String,
    daemons: Arc<Daemons>,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
    places: Semaphore,
}

impl Reviewer {
    pub(crate) fn new(client: Client, settings: &Settings, daemons: Arc<Daemons>) -> Self {
        Self {
            reviews: Api::all(client),
            audience: settings.token_audience.clone(),
            user: format!(
                "system:serviceaccount:{}:{}",
                settings.namespace, settings.ztunnel_service_account
            ),
            daemons,
            remembered: Mutex::default(),
            places: Semaphore::new(REVIEWS),
        }
    }

    async fn bound(&self, bearer: &str) -> Result<Bound, Unauthenticated> {
        let hash = hash(bearer);
        if let Some(bound) = self.recall(&hash) {
            return Ok(bound);
        }
        // What the token says of itself proves nothing, but one that does not even claim to be a daemon's
        // costs no review.
        let claims = Claims::read(bearer)
            .ok_or_else(|| refuse(Refused("form", "the token is not a service account's".to_owned())))?;
        claims
            .check(&self.user, &self.audience)
            .map_err(|(reason, message)| refuse(Refused(reason, message)))?;
        let review = async {
            let place = self.places.acquire().await;
            // Another call with the same token may have been answered meanwhile.
            if let Some(bound) = self.recall(&hash) {
                return Ok(bound);
            }
            let status = self.review(bearer).await;
            drop(place);
            let bound = judge(status?, &self.user, &self.audience).map_err(refuse)?;
            self.remember(hash, &bound, claims.expires);
            Ok(bound)
        };
        let late = |_| unavailable("the API server did not answer in time");
        tokio::time::timeout(DEADLINE, review).await.map_err(late)?
    }

    async fn review(&self, bearer: &str) -> Result<TokenReviewStatus, Unauthenticated> {
        let spec =
            TokenReviewSpec { token: Some(bearer.to_owned()), audiences: Some(vec![self.audience.clone()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        match self.reviews.create(&PostParams::default(), &review).await {
            Ok(review) => Ok(review.status.unwrap_or_default()),
            Err(error) => {
                tracing::warn!(error = %crate::error_chain(&error), "token review failed");
                Err(unavailable("the API server cannot be asked about the token"))
            }
        }
    }

    fn recall(&self, hash: &[u8; 32]) -> Option<Bound> {
        let remembered = self.remembered.lock();
        let found = remembered.get(hash).filter(|found| Instant::now() < found.until)?;
        Some(found.bound.clone())
    }

    fn remember(&self, hash: [u8; 32], bound: &Bound, expires: SystemTime) {
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        let until = Instant::now() + REMEMBERED.min(left.saturating_sub(BEFORE_EXPIRY));
        let mut remembered = self.remembered.lock();
        if remembered.len() >= MOST_REMEMBERED {
            let now = Instant::now();
            remembered.retain(|_, found| now < found.until);
            if remembered.len() >= MOST_REMEMBERED {
                return;
            }
        }
        remembered.insert(hash, Remembered { bound: bound.clone(), until });
    }

    fn forget(&self, bearer: &str) {
        self.remembered.lock().remove(&hash(bearer));
    }
}

#[async_trait]
impl Authenticate for Reviewer {
    async fn node(&self, bearer: &str) -> Result<NodeName, Unauthenticated> {
        let bound = self.bound(bearer).await?;
        let Some(daemon) = self.daemons.appear(&bound.name).await else {
            self.forget(bearer);
            TOKENS_REFUSED.count(["unknown_pod"]);
            return Err(unavailable("the token's pod is not known (yet), or not scheduled"));
        };
        let refused = if daemon.uid != bound.uid {
            Some(Refused("other_pod", "the token's pod has given way to another".to_owned()))
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
}

fn refuse(Refused(reason, message): Refused) -> Unauthenticated {
    TOKENS_REFUSED.count([reason]);
    tracing::warn!(reason, "token refused: {message}");
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

/// What the API server's answer comes to.
fn judge(status: TokenReviewStatus, user: &str, audience: &str) -> Result<Bound, Refused> {
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "no reason given".to_owned());
        return Err(Refused("not_authenticated", format!("the API server does not know the token: {why}")));
    }
    // An API server that knows nothing of audiences says none, and would take any token.
    if !status.audiences.iter().flatten().any(|known| known == audience) {
        return Err(Refused("audience", format!("the token is not meant for {audience}")));
    }
    let info = status.user.unwrap_or_default();
    let name = info.username.unwrap_or_default();
    if name != user {
        return Err(Refused("service_account", format!("the token is of {name}, not of {user}")));
    }
    let extra = info.extra.unwrap_or_default();
    let single = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    match (single(POD_NAME), single(POD_UID)) {
        (Some(name), Some(uid)) => Ok(Bound { name, uid }),
        _ => Err(Refused("no_pod", "the token is not bound to a pod".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    const USER: &str = "system:serviceaccount:mesh:ztunnel";

    fn status() -> TokenReviewStatus {
        let extra = [(POD_NAME, "ztunnel-x"), (POD_UID, "1-2-3")];
        let extra = extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["ambit-ca".to_owned()]),
            error: None,
            user: Some(UserInfo {
                username: Some(USER.to_owned()),
                extra: Some(BTreeMap::from(extra)),
                ..UserInfo::default()
            }),
        }
    }

    fn without(key: &str) -> TokenReviewStatus {
        let mut status = status();
        if let Some(extra) = status.user.as_mut().and_then(|user| user.extra.as_mut()) {
            extra.remove(key);
        }
        status
    }

    #[test]
    fn answers() {
        let bound = Bound { name: "ztunnel-x".to_owned(), uid: "1-2-3".to_owned() };
        let user = |name: &str| {
            let mut status = status();
            if let Some(user) = &mut status.user {
                user.username = Some(name.to_owned());
            }
            status
        };
        let audiences = |audiences: Option<&[&str]>| TokenReviewStatus {
            audiences: audiences.map(|all| all.iter().map(|one| (*one).to_owned()).collect()),
            ..status()
        };
        let rows = [
            ("good", status(), Ok(bound.clone())),
            ("one audience of two", audiences(Some(&["x", "ambit-ca"])), Ok(bound)),
            ("empty", TokenReviewStatus::default(), Err("not_authenticated")),
            (
                "not authenticated",
                TokenReviewStatus { authenticated: Some(false), ..status() },
                Err("not_authenticated"),
            ),
            ("other audience", audiences(Some(&["https://kubernetes"])), Err("audience")),
            ("no audience", audiences(None), Err("audience")),
            ("other service account", user("system:serviceaccount:shop:web"), Err("service_account")),
            ("same name elsewhere", user("system:serviceaccount:shop:ztunnel"), Err("service_account")),
            ("nobody", TokenReviewStatus { user: None, ..status() }, Err("service_account")),
            ("no pod", without(POD_NAME), Err("no_pod")),
            ("no pod's uid", without(POD_UID), Err("no_pod")),
        ];
        for (name, status, expected) in rows {
            let found = judge(status, USER, "ambit-ca").map_err(|Refused(reason, _)| reason);
            assert_eq!(found, expected, "{name}");
        }
    }
}
