//! One client's side of the delta protocol, as a pure state machine: requests go in, the next response comes
//! out.
//!
//! At most one response of a type is under way: the next one is made when the client has answered the last,
//! from what is true then. So what changes often is sent as often as the client can take it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::reply::Reply;
use super::store::{Behind, Changed, Store};
use crate::proto::discovery::DeltaDiscoveryRequest;
use crate::resource::{Encoded, ResourceType};

/// Names that a client may subscribe to one by one.
const MAX_NAMES: usize = 10_000;
/// How long such a name may be.
const MAX_NAME: usize = 1_024;
/// Types unknown here that a client may ask for; a newer daemon may know some.
const MAX_FOREIGN: usize = 16;

const WILDCARD: &str = "*";

/// What a request said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Interest in resources, and nothing about a response.
    Subscribed,
    /// The last response was taken.
    Ack,
    /// Part of the last response was refused.
    Nack { kind: ResourceType, message: String },
    /// An answer to a response that is not the last one.
    Stale,
    /// A type that is not served here.
    Foreign,
}

/// The client asks for more than a session may hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("subscribed to more than {MAX_NAMES} resources by name")]
    Names,
    #[error("subscribed to a resource name longer than {MAX_NAME} bytes")]
    NameLength,
    #[error("asked for more than {MAX_FOREIGN} unknown types")]
    Foreign,
}

#[derive(Debug, Default)]
pub(super) struct Session {
    subscriptions: [Option<Subscription>; 2],
    /// Unknown types: they get one empty answer each, so that a client that waits for it does not wait
    /// forever.
    foreign: BTreeSet<String>,
    foreign_unanswered: VecDeque<String>,
    responses: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What the client said it holds; taken when the first response is made.
    claimed: Option<BTreeMap<String, String>>,
    /// Names to be sent whether they changed or not.
    asked: BTreeSet<Arc<str>>,
    /// The store's revision that the client has been told of.
    told: u64,
    /// The nonce of the response that is not answered yet.
    unanswered: Option<String>,
}

impl Session {
    /// Takes a request.
    pub(super) fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<Heard, Violation> {
        let Some(kind) = ResourceType::from_type_url(&request.type_url) else {
            return self.receive_foreign(request);
        };
        let Some(subscription) = &mut self.subscriptions[kind.index()] else {
            let mut subscription = Subscription {
                wildcard: request.resource_names_subscribe.is_empty(),
                claimed: Some(request.initial_resource_versions),
                ..Subscription::default()
            };
            subscription.subscribe(request.resource_names_subscribe)?;
            self.subscriptions[kind.index()] = Some(subscription);
            return Ok(Heard::Subscribed);
        };
        let heard = if request.response_nonce.is_empty() {
            Heard::Subscribed
        } else if subscription.unanswered.as_deref() != Some(request.response_nonce.as_str()) {
            Heard::Stale
        } else {
            subscription.unanswered = None;
            match request.error_detail {
                Some(status) => Heard::Nack { kind, message: status.message },
                None => Heard::Ack,
            }
        };
        subscription.subscribe(request.resource_names_subscribe)?;
        subscription.unsubscribe(&request.resource_names_unsubscribe);
        Ok(heard)
    }

    fn receive_foreign(&mut self, request: DeltaDiscoveryRequest) -> Result<Heard, Violation> {
        if self.foreign.contains(&request.type_url) {
            return Ok(Heard::Foreign);
        }
        if self.foreign.len() == MAX_FOREIGN || request.type_url.len() > MAX_NAME {
            return Err(Violation::Foreign);
        }
        self.foreign.insert(request.type_url.clone());
        self.foreign_unanswered.push_back(request.type_url);
        Ok(Heard::Foreign)
    }

    /// The next response, if there is anything to say.
    pub(super) fn next(&mut self, store: &Store) -> Result<Option<Reply>, Behind> {
        if !store.ready() {
            return Ok(None);
        }
        if let Some(type_url) = self.foreign_unanswered.pop_front() {
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
                return Err(Violation::NameLength);
            }
            if name == WILDCARD {
                if !self.wildcard {
                    self.wildcard = true;
                    self.claimed.get_or_insert_default();
                }
                continue;
            }
            let name: Arc<str> = name.into();
            self.asked.insert(name.clone());
            self.names.insert(name);
            if self.names.len() > MAX_NAMES {
                return Err(Violation::Names);
            }
        }
        Ok(())
    }

    fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.wildcard = false;
            } else if let Some(name) = self.names.take(name.as_str()) {
                // A wildcard still covers it, and the client may have dropped it: send it again.
                if self.wildcard {
                    self.asked.insert(name);
                } else {
                    self.asked.remove(&name);
                }
            }
        }
    }

    /// What the client should be told now; the first time always something, if only that there is nothing.
    fn changed(&mut self, kind: ResourceType, store: &Store) -> Result<Option<Changed>, Behind> {
        let (first, changed) = if let Some(claimed) = self.claimed.take() {
            self.asked.clear();
            (true, self.difference(kind, store, &claimed))
        } else {
            (false, self.since(kind, store)?)
        };
        self.told = store.revision();
        Ok((first || !changed.put.is_empty() || !changed.removed.is_empty()).then_some(changed))
    }

    /// What the client lacks and what it holds in vain, by its own account.
    fn difference(&self, kind: ResourceType, store: &Store, claimed: &BTreeMap<String, String>) -> Changed {
        let lacks = |resource: &&Arc<Encoded>| {
            claimed.get(&*resource.name).is_none_or(|version| **version != *resource.version)
        };
        let gone = |name: &&str| store.get(kind, name).is_none();
        if self.wildcard {
            let named = self.names.iter().map(|name| &**name).filter(|name| !claimed.contains_key(*name));
            let in_vain = claimed.keys().map(String::as_str).chain(named).filter(gone);
            Changed {
                put: store.all(kind).filter(lacks).cloned().collect(),
                removed: in_vain.map(Into::into).collect(),
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

    /// What changed since the client was last told, and what it asked for again.
    fn since(&mut self, kind: ResourceType, store: &Store) -> Result<Changed, Behind> {
        let mut changed = store.since(kind, self.told)?;
        if !self.wildcard {
            changed.put.retain(|resource| self.names.contains(&resource.name));
            changed.removed.retain(|name| self.names.contains(name));
        }
        if !self.asked.is_empty() {
            let mut asked = std::mem::take(&mut self.asked);
            for name in changed.put.iter().map(|resource| &resource.name).chain(&changed.removed) {
                asked.remove(name);
            }
            for name in asked {
                match store.get(kind, &name) {
                    Some(resource) => changed.put.push(resource.clone()),
                    None => changed.removed.push(name),
                }
            }
        }
        Ok(changed)
    }
}
