//! `spec.listeners` of a Gateway: a [`Listener`], and which namespaces may use it ([`AllowedNamespaces`]).

use super::key::Selector;

/// The protocol of a waypoint's listener.
const HBONE: &str = "HBONE";
/// The label that Kubernetes puts on every Namespace: its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A listener of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// Its name, unique in the Gateway.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: String,
    /// `allowedRoutes.namespaces`.
    pub namespaces: AllowedNamespaces,
    /// The kinds in `allowedRoutes.kinds`; empty: those that the protocol implies.
    pub kinds: Vec<String>,
}

/// `allowedRoutes.namespaces`: of a waypoint, whose services and workloads may be bound to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedNamespaces {
    /// The Gateway's own, also where nothing is written.
    #[default]
    Same,
    /// All.
    All,
    /// None.
    None,
    /// Those whose labels meet every requirement.
    Selected(Vec<LabelRequirement>),
}

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRequirement {
    /// The label.
    pub key: String,
    /// What it must be.
    pub value: LabelValue,
}

/// What a label selector asks of a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelValue {
    /// One of these.
    In(Vec<String>),
    /// None of these; a label that is not there is none of them.
    NotIn(Vec<String>),
    /// Any.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl Listener {
    /// A listener for HBONE.
    pub fn hbone(name: &str, port: u16) -> Self {
        Self { name: name.to_owned(), port, protocol: HBONE.to_owned(), ..Self::default() }
    }

    /// Whether clients' ztunnels open tunnels to it.
    pub fn is_hbone(&self) -> bool {
        self.protocol == HBONE
    }
}

impl AllowedNamespaces {
    /// Whether a Gateway of namespace `own` admits objects of `namespace`, which has these labels.
    pub fn admit(&self, own: &str, namespace: &str, labels: Option<&Selector>) -> bool {
        match self {
            Self::Same => own == namespace,
            Self::All => true,
            Self::None => false,
            Self::Selected(requirements) => requirements.iter().all(|requirement| {
                let label = match requirement.key.as_str() {
                    NAME_LABEL => Some(namespace),
                    key => labels.and_then(|labels| labels.get(key)).map(String::as_str),
                };
                requirement.value.holds(label)
            }),
        }
    }
}

impl LabelValue {
    fn holds(&self, label: Option<&str>) -> bool {
        let is_in = |values: &[String]| label.is_some_and(|label| values.iter().any(|it| it == label));
        match self {
            Self::In(values) => is_in(values),
            Self::NotIn(values) => !is_in(values),
            Self::Exists => label.is_some(),
            Self::DoesNotExist => label.is_none(),
        }
    }
}
