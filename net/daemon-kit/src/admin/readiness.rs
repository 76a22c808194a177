//! Readiness: named conditions that must all hold. `/healthz/ready` answers 200 when they do, else 503 and
//! which do not.
//!
//! Entry points: [`Readiness::condition`] and [`Readiness::routes`].

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::Arc;

use http::StatusCode;
use parking_lot::RwLock;
use serde::Serialize;

use super::router::{Response, Router};

/// All conditions of a daemon. Clones are the same conditions. Without any it is not ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<RwLock<BTreeMap<&'static str, State>>>);

/// One condition, unmet until it is said to hold.
#[derive(Clone, Debug)]
pub struct Condition {
    all: Readiness,
    name: &'static str,
}

#[derive(Clone, Debug, Serialize)]
struct State {
    met: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Readiness {
    /// Without conditions: not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition, unmet.
    pub fn condition(&self, name: &'static str) -> Condition {
        self.0.write().insert(name, State { met: false, why: Some("not yet".to_owned()) });
        Condition { all: self.clone(), name }
    }

    /// Whether all conditions hold.
    pub fn is_ready(&self) -> bool {
        let conditions = self.0.read();
        !conditions.is_empty() && conditions.values().all(|state| state.met)
    }

    /// Answers `/healthz/ready` and `/healthz/live`.
    pub fn routes(&self) -> Router {
        let all = self.clone();
        Router::new()
            .get("/healthz/ready", move |_| ready(all.answer()))
            .get("/healthz/live", |_| ready(Response::text("alive\n")))
    }

    fn answer(&self) -> Response {
        #[derive(Serialize)]
        struct Answer<'a> {
            ready: bool,
            conditions: &'a BTreeMap<&'static str, State>,
        }
        let ready = self.is_ready();
        let answer = Response::json(&Answer { ready, conditions: &self.0.read() });
        if ready { answer } else { answer.with_status(StatusCode::SERVICE_UNAVAILABLE) }
    }

    fn set(&self, name: &'static str, state: State) {
        self.0.write().insert(name, state);
    }
}

impl Condition {
    /// It holds.
    pub fn met(&self) {
        self.all.set(self.name, State { met: true, why: None });
    }

    /// It holds, and this is to be said of it.
    pub fn met_because(&self, why: impl Into<String>) {
        self.all.set(self.name, State { met: true, why: Some(why.into()) });
    }

    /// It does not, or no longer.
    pub fn unmet(&self, why: impl Into<String>) {
        self.all.set(self.name, State { met: false, why: Some(why.into()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_condition_holds() {
        let readiness = Readiness::new();
        assert!(!readiness.is_ready(), "nothing is known yet");
        let (xds, enrolment) = (readiness.condition("xds"), readiness.condition("enrolment"));
        xds.met();
        assert!(!readiness.is_ready(), "one of two");
        enrolment.met();
        assert!(readiness.is_ready());
        assert_eq!(readiness.answer().status, StatusCode::OK);
        xds.unmet("the stream broke");
        let answer = readiness.answer();
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(
            body,
            serde_json::json!({
                "ready": false,
                "conditions": {
                    "xds": { "met": false, "why": "the stream broke" },
                    "enrolment": { "met": true },
                },
            })
        );
    }
}
