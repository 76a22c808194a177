//! The client's resources, as a pure state machine: [`State`] turns responses into changes and requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ambit_core::mesh::Change;
use ambit_core::model::{PolicyKey, ServiceKey, WorkloadUid};
use prost::Message;

use super::interest::Interest;
use super::rejected::Rejected;
use crate::convert::{decode_authorization, decode_routes, decode_service, decode_workload};
use crate::proto::ambit::v1::ServiceRoutes;
use crate::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status};
use crate::proto::istio::security::Authorization;
use crate::proto::istio::workload::{Address, address};
use crate::resource::{COUNT, ResourceType};

/// `INVALID_ARGUMENT`
const INVALID: i32 = 3;
/// The most problems that a NACK lists.
const MAX_LISTED: usize = 10;

/// The resources in force, by type and name.
#[derive(Debug, Default)]
pub(super) struct State {
    interest: Interest,
    types: [Held; COUNT],
    /// The services whose routes are wanted: those that this waypoint fronts.
    fronted: BTreeSet<Arc<str>>,
    /// Those whose routes were subscribed to on this stream.
    subscribed: BTreeSet<Arc<str>>,
}

#[derive(Debug, Default)]
struct Held {
    resources: BTreeMap<Arc<str>, Known>,
    answered: bool,
}

/// A resource that is in force.
#[derive(Clone, Debug)]
struct Known {
    version: Arc<str>,
    key: Key,
}

/// The resource of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Workload(WorkloadUid),
    Service(ServiceKey),
    Policy(PolicyKey),
    Routes(ServiceKey),
}

impl Key {
    fn name(&self) -> String {
        match self {
            Self::Workload(uid) => uid.to_string(),
            Self::Service(key) | Self::Routes(key) => key.to_string(),
            Self::Policy(key) => key.to_string(),
        }
    }

    fn remove(self) -> Change {
        match self {
            Self::Workload(uid) => Change::RemoveWorkload(uid),
            Self::Service(key) => Change::RemoveService(key),
            Self::Policy(key) => Change::RemovePolicy(key),
            Self::Routes(key) => Change::RemoveRoutes(key),
        }
    }
}

/// A decoded response. Goes to [`State::answer`] when its changes have been applied.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) changes: Vec<Change>,
    pub(super) rejected: Vec<Rejected>,
    kind: ResourceType,
    nonce: String,
    put: Vec<(Arc<str>, Known)>,
    removed: Vec<String>,
}

impl Received {
    pub(super) fn kind(&self) -> ResourceType {
        self.kind
    }
}

impl State {
    /// The number of resources of a type.
    pub(super) fn held(&self, kind: ResourceType) -> usize {
        self.types[kind.index()].resources.len()
    }

    /// The first requests on a new stream: one for each type, except for routes where none are wanted (yet).
    pub(super) fn subscribe_all(&mut self, node: &str) -> Vec<DeltaDiscoveryRequest> {
        self.subscribed.clear();
        let others = ResourceType::ALL.into_iter().filter(|kind| *kind != ResourceType::Routes);
        let mut requests: Vec<_> = others.map(|kind| self.subscribe(kind, node)).collect();
        requests.extend(self.resubscribe(node));
        requests
    }

    /// A request for the routes of the services that are fronted now; `None` if nothing differs.
    pub(super) fn resubscribe(&mut self, node: &str) -> Option<DeltaDiscoveryRequest> {
        let names = |one: &BTreeSet<Arc<str>>, other: &BTreeSet<Arc<str>>| {
            one.difference(other).map(ToString::to_string).collect::<Vec<_>>()
        };
        let (more, fewer) = (names(&self.fronted, &self.subscribed), names(&self.subscribed, &self.fronted));
        if more.is_empty() && fewer.is_empty() {
            return None;
        }
        let begins = self.subscribed.is_empty();
        self.subscribed.clone_from(&self.fronted);
        let base = if begins {
            self.subscribe(ResourceType::Routes, node)
        } else {
            DeltaDiscoveryRequest::default()
        };
        Some(DeltaDiscoveryRequest {
            type_url: ResourceType::Routes.type_url().to_owned(),
            resource_names_subscribe: more,
            resource_names_unsubscribe: fewer,
            ..base
        })
    }

    /// The first request of a type on a new stream: a wildcard subscription with the held versions.
    pub(super) fn subscribe(&self, kind: ResourceType, node: &str) -> DeltaDiscoveryRequest {
        let held = &self.types[kind.index()].resources;
        DeltaDiscoveryRequest {
            node: Some(Node {
                id: node.to_owned(),
                build_version: env!("CARGO_PKG_VERSION").to_owned(),
                ..Node::default()
            }),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            initial_resource_versions: held
                .iter()
                .map(|(name, known)| (name.to_string(), known.version.to_string()))
                .collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Whether every type has had a response. Routes have none where no service is fronted.
    pub(super) fn synced(&self) -> bool {
        ResourceType::ALL.into_iter().all(|kind| {
            let nothing_wanted = kind == ResourceType::Routes && self.fronted.is_empty();
            self.types[kind.index()].answered || nothing_wanted
        })
    }

    /// Follows which services have this waypoint. The routes of those that have it no more are dropped.
    fn follow_fronted(&mut self, received: &mut Received) {
        let Interest::Waypoint(own) = &self.interest else { return };
        let mut gone: Vec<Arc<str>> = Vec::new();
        for change in &received.changes {
            match change {
                Change::PutService(service) => {
                    let name: Arc<str> = service.key.to_string().into();
                    if service.waypoint.as_ref().is_some_and(|waypoint| waypoint.is(own)) {
                        self.fronted.insert(name);
                    } else if self.fronted.remove(&name) {
                        gone.push(name);
                    }
                }
                Change::RemoveService(key) => gone.extend(self.fronted.take(&*key.to_string())),
                _ => {}
            }
        }
        let held = &mut self.types[ResourceType::Routes.index()].resources;
        for name in gone.into_iter().filter(|name| !self.fronted.contains(name)) {
            received.changes.extend(held.remove(&name).map(|known| known.key.remove()));
        }
    }

    /// Of a client with this interest.
    pub(super) fn new(interest: Interest) -> Self {
        Self { interest, ..Self::default() }
    }

    /// Decodes a response. `None` if its type was not subscribed to.
    pub(super) fn receive(&mut self, response: DeltaDiscoveryResponse) -> Option<Received> {
        let kind = ResourceType::from_type_url(&response.type_url)?;
        let held = &mut self.types[kind.index()];
        held.answered = true;
        let mut received = Received {
            changes: Vec::with_capacity(response.resources.len() + response.removed_resources.len()),
            rejected: Vec::new(),
            kind,
            nonce: response.nonce,
            put: Vec::with_capacity(response.resources.len()),
            removed: response.removed_resources,
        };
        // Removals first: an address may pass from a removed workload to a new one.
        for name in &received.removed {
            if let Some(known) = held.resources.get(name.as_str()) {
                received.changes.push(known.key.clone().remove());
            }
        }
        for resource in response.resources {
            match decode(kind, &resource) {
                Ok((key, change)) => {
                    let name: Arc<str> = resource.name.into();
                    if let Some(known) = held.resources.get(&name)
                        && known.key != key
                    {
                        received.changes.push(known.key.clone().remove());
                    }
                    received.changes.push(change);
                    received.put.push((name, Known { version: resource.version.into(), key }));
                }
                Err(reason) => received.rejected.push(Rejected { resource: resource.name, reason }),
            }
        }
        self.follow_fronted(&mut received);
        Some(received)
    }

    /// The ACK or NACK of a response whose changes are in force, except for the `refused` resources.
    pub(super) fn answer(&mut self, received: Received, refused: &[Rejected]) -> DeltaDiscoveryRequest {
        let held = &mut self.types[received.kind.index()].resources;
        for name in &received.removed {
            held.remove(name.as_str());
        }
        let names: BTreeSet<&str> = refused.iter().map(|rejected| rejected.resource.as_str()).collect();
        held.extend(received.put.into_iter().filter(|(name, _)| !names.contains(&**name)));
        let problems: Vec<&Rejected> = received.rejected.iter().chain(refused).collect();
        DeltaDiscoveryRequest {
            type_url: received.kind.type_url().to_owned(),
            response_nonce: received.nonce,
            error_detail: (!problems.is_empty()).then(|| refusal(&problems)),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

fn refusal(problems: &[&Rejected]) -> Status {
    let named: Vec<String> =
        problems.iter().take(MAX_LISTED).map(|p| format!("{}: {}", p.resource, p.reason)).collect();
    let mut message = named.join("; ");
    if problems.len() > MAX_LISTED {
        message = format!("{message}; and {} more", problems.len() - MAX_LISTED);
    }
    Status { code: INVALID, message, details: Vec::new() }
}

/// Decodes a resource; the error names the field.
fn decode(kind: ResourceType, resource: &Resource) -> Result<(Key, Change), String> {
    let body = resource.resource.as_ref().ok_or("resource: is missing")?;
    if body.type_url != kind.type_url() {
        return Err(format!("resource: has type {:?}", body.type_url));
    }
    let malformed = |error: prost::DecodeError| format!("resource: {error}");
    let field = |error: crate::convert::DecodeError| format!("{}: {}", error.field, error.problem);
    let (key, change) = match kind {
        ResourceType::Address => match Address::decode(body.value.as_slice()).map_err(malformed)?.r#type {
            Some(address::Type::Workload(workload)) => {
                let workload = decode_workload(&workload).map_err(field)?;
                (Key::Workload(workload.uid.clone()), Change::PutWorkload(workload.into()))
            }
            Some(address::Type::Service(service)) => {
                let service = decode_service(&service).map_err(field)?;
                (Key::Service(service.key.clone()), Change::PutService(service.into()))
            }
            None => return Err("type: is neither a workload nor a service".to_owned()),
        },
        ResourceType::Authorization => {
            let policy = Authorization::decode(body.value.as_slice()).map_err(malformed)?;
            let policy = decode_authorization(&policy).map_err(field)?;
            (Key::Policy(policy.key.clone()), Change::PutPolicy(policy.into()))
        }
        ResourceType::Routes => {
            let routes = ServiceRoutes::decode(body.value.as_slice()).map_err(malformed)?;
            let routes = decode_routes(&routes).map_err(field)?;
            (Key::Routes(routes.service().clone()), Change::PutRoutes(routes.into()))
        }
    };
    // Removals are by name: under another name this resource could never be removed.
    if key.name() != resource.name {
        return Err(format!("name: the resource calls itself {:?}", key.name()));
    }
    Ok((key, change))
}

#[cfg(test)]
mod tests;
