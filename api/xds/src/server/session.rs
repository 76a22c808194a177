//! The delta protocol with one client, as a pure state machine: [`Session`] takes requests and gives
//! responses.
//!
//! At most one response of a type is unanswered. The next one is made from the store's state when the client
//! has answered, so a resource that changes often is sent as often as the client can handle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::reply::Reply;
use super::store::{Behind, Changed, Store};
use crate::proto::discovery::DeltaDiscoveryRequest;
use crate::resource::{COUNT, Encoded, ResourceType};

/// The most names that a client may subscribe to.
const MAX_NAMES: usize = 10_000;
/// The longest name, in bytes.
const MAX_NAME: usize = 1_024;
/// The most bytes of all names of a type.
const MAX_NAME_BYTES: usize = 1 << 20;
/// The most unknown types that a client may subscribe to: a newer daemon may know some.
const MAX_UNKNOWN: usize = 16;

const WILDCARD: &str = "*";

/// The meaning of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A subscription, without an answer to a response.
    Subscribed,
    /// The last response was accepted.
    Ack,
    /// A resource of the last response was rejected.
    Nack { kind: ResourceType, message: String },
    /// An answer to an earlier response.
    Stale,
    /// A type that is not served.
    Unknown,
}

/// A client exceeds a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("subscribed to more than {MAX_NAMES} resources by name")]
    TooManyNames,
    #[error("subscribed to a resource name longer than {MAX_NAME} bytes")]
    LongName,
    #[error("subscribed to resource names of more than {MAX_NAME_BYTES} bytes")]
    ManyBytes,
    #[error("asked for more than {MAX_UNKNOWN} unknown types")]
    UnknownTypes,
}

#[derive(Debug, Default)]
pub(super) struct Session {
    subscriptions: [Option<Subscription>; COUNT],
    /// Unknown types. Each gets one empty response, because a client may wait for it.
    unknown: BTreeSet<String>,
    unknown_unanswered: VecDeque<String>,
    responses: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    name_bytes: usize,
    /// The versions that the client holds; taken when the first response is made.
    claimed: Option<BTreeMap<String, String>>,
    /// Names to be sent even if they are unchanged.
    requested: BTreeSet<Arc<str>>,
    /// The store's revision that the client has been sent.
    sent: u64,
    /// The nonce of the unanswered response.
    unanswered: Option<String>,
}

impl Session {
    /// Processes a request.
    pub(super) fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<Received, Violation> {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            return self.receive_unknown(request);
        };
        let Some(subscription) = &mut self.subscriptions[kind.index()] else {
            let mut subscription = Subscription {
                wildcard: request.resource_names_subscribe.is_empty(),
                claimed: Some(request.initial_resource_versions),
                ..Subscription::default()
            };
            subscription.subscribe(request.resource_names_subscribe)?;
            self.subscriptions[kind.index()] = Some(subscription);
            return Ok(Received::Subscribed);
        };
        let received = if request.response_nonce.is_empty() {
            Received::Subscribed
        } else if subscription.unanswered.as_deref() != Some(request.response_nonce.as_str()) {
            Received::Stale
        } else {
            subscription.unanswered = None;
            match request.error_detail {
                Some(status) => Received::Nack { kind, message: status.message },
                None => Received::Ack,
            }
        };
        subscription.subscribe(request.resource_names_subscribe)?;
        subscription.unsubscribe(&request.resource_names_unsubscribe);
        Ok(received)
    }

    /// Whether it still holds what its client claimed: a response to it is due.
    pub(super) fn has_claims(&self) -> bool {
        let claimed =
            |subscription: &Subscription| subscription.claimed.as_ref().is_some_and(|it| !it.is_empty());
        self.subscriptions.iter().flatten().any(claimed)
    }

    fn receive_unknown(&mut self, request: DeltaDiscoveryRequest) -> Result<Received, Violation> {
        if self.unknown.contains(&request.type_url) {
            return Ok(Received::Unknown);
        }
        if self.unknown.len() == MAX_UNKNOWN || request.type_url.len() > MAX_NAME {
            return Err(Violation::UnknownTypes);
        }
        self.unknown.insert(request.type_url.clone());
        self.unknown_unanswered.push_back(request.type_url);
        Ok(Received::Unknown)
    }

    /// The next response, if there is one.
    pub(super) fn next(&mut self, store: &Store) -> Result<Option<Reply>, Behind> {
        if !store.ready() {
            return Ok(None);
        }
        if let Some(type_url) = self.unknown_unanswered.pop_front() {
            return Ok(Some(Reply {
                type_url,
                nonce: self.nonce(),
                changed: Changed::default(),
                whole: None,
            }));
        }
        for kind in ResourceType::ALL {
            let Some(subscription) = &mut self.subscriptions[kind.index()] else { continue };
            if subscription.unanswered.is_some() {
                continue;
            }
            if let Some(changed) = subscription.changed(kind, store)? {
                let nonce = self.nonce();
                if let Some(subscription) = &mut self.subscriptions[kind.index()] {
                    subscription.unanswered = Some(nonce.clone());
                }
                let whole = changed.whole.then(|| (kind, store.revision()));
                return Ok(Some(Reply { type_url: kind.type_url().to_owned(), nonce, changed, whole }));
            }
        }
        Ok(None)
    }

    fn nonce(&mut self) -> String {
        self.responses += 1;
        self.responses.to_string()
    }
}

impl Subscription {
    fn subscribe(&mut self, names: Vec<String>) -> Result<(), Violation> {
        for name in names {
            if name.len() > MAX_NAME {
                return Err(Violation::LongName);
            }
            if name == WILDCARD {
                if !self.wildcard {
                    self.wildcard = true;
                    self.claimed.get_or_insert_default();
                }
                continue;
            }
            let name: Arc<str> = name.into();
            self.requested.insert(name.clone());
            let bytes = name.len();
            if self.names.insert(name) {
                self.name_bytes += bytes;
            }
            if self.name_bytes > MAX_NAME_BYTES {
                return Err(Violation::ManyBytes);
            }
            if self.names.len() > MAX_NAMES {
                return Err(Violation::TooManyNames);
            }
        }
        Ok(())
    }

    fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.wildcard = false;
            } else if let Some(name) = self.names.take(name.as_str()) {
                self.name_bytes -= name.len();
                // The wildcard still covers it, but the client may have removed it: send it again.
                if self.wildcard {
                    self.requested.insert(name);
                } else {
                    self.requested.remove(&name);
                }
            }
        }
    }

    /// What the client lacks. The first response is sent even if it is empty.
    fn changed(&mut self, kind: ResourceType, store: &Store) -> Result<Option<Changed>, Behind> {
        let (first, changed) = if let Some(claimed) = self.claimed.take() {
            self.requested.clear();
            (true, self.difference(kind, store, &claimed))
        } else {
            (false, self.since(kind, store)?)
        };
        self.sent = store.revision();
        Ok((first || !changed.put.is_empty() || !changed.removed.is_empty()).then_some(changed))
    }

    /// What differs from the versions that the client holds.
    fn difference(&self, kind: ResourceType, store: &Store, claimed: &BTreeMap<String, String>) -> Changed {
        let lacks = |resource: &&Arc<Encoded>| {
            claimed.get(&*resource.name).is_none_or(|version| **version != *resource.version)
        };
        let gone = |name: &&str| store.get(kind, name).is_none();
        if self.wildcard {
            let named = self.names.iter().map(|name| &**name).filter(|name| !claimed.contains_key(*name));
            let removed = claimed.keys().map(String::as_str).chain(named).filter(gone);
            Changed {
                put: store.all(kind).filter(lacks).cloned().collect(),
                removed: removed.map(Into::into).collect(),
                whole: claimed.is_empty(),
            }
        } else {
            let named = self.names.iter().filter_map(|name| store.get(kind, name));
            Changed {
                put: named.filter(lacks).cloned().collect(),
                removed: self.names.iter().filter(|name| gone(&&***name)).cloned().collect(),
                whole: false,
            }
        }
    }

    /// What changed since the last response, and what was requested again.
    fn since(&mut self, kind: ResourceType, store: &Store) -> Result<Changed, Behind> {
        let mut changed = store.since(kind, self.sent)?;
        if !self.wildcard {
            changed.put.retain(|resource| self.names.contains(&resource.name));
            changed.removed.retain(|name| self.names.contains(name));
        }
        if !self.requested.is_empty() {
            let mut requested = std::mem::take(&mut self.requested);
            for name in changed.put.iter().map(|resource| &resource.name).chain(&changed.removed) {
                requested.remove(name);
            }
            for name in requested {
                match store.get(kind, &name) {
                    Some(resource) => changed.put.push(resource.clone()),
                    None => changed.removed.push(name),
                }
            }
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests;
