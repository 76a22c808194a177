//! `ambit waypoint`: the Gateways of class `ambit-waypoint`; the controller runs a waypoint for each.
//!
//! Entry point: [`run`].

mod view;

use std::process::ExitCode;
use std::time::Duration;

use ambit_core::derive::{USE_WAYPOINT, USE_WAYPOINT_NAMESPACE, WAYPOINT_CLASS, WAYPOINT_FOR};
use ambit_core::inbound::HBONE_PORT;
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, oneshot};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::cluster::{Access, label_namespace};
use crate::error::{Error, api};
use crate::manifests::MANAGER;
use crate::output::outln;
use crate::table::Table;
use crate::wait::{self, Look};

/// What to do.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make or change a waypoint, and wait until it is programmed.
    Apply(Apply),
    /// List the waypoints.
    List(List),
    /// Show what holds of a waypoint; the exit code is 1 if it is not programmed.
    Status(One),
    /// Delete a waypoint. What is bound to it is then reached without it.
    Delete(One),
}

#[derive(Debug, Args)]
struct One {
    /// Its name.
    #[arg(default_value = "waypoint")]
    name: String,
    /// Its namespace.
    #[arg(long, short)]
    namespace: String,
}

#[derive(Debug, Args)]
struct Apply {
    #[command(flatten)]
    waypoint: One,
    /// What connections are asked for that pass it; a waypoint that is there keeps its own.
    #[arg(long = "for", value_enum)]
    traffic: Option<Traffic>,
    /// Bind the services of the waypoint's namespace to it, once it is programmed.
    #[arg(long)]
    bind_namespace: bool,
    /// How long to wait for it.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Traffic {
    Service,
    Workload,
    All,
    None,
}

#[derive(Debug, Args)]
struct List {
    /// Only those of a namespace.
    #[arg(long, short)]
    namespace: Option<String>,
}

pub(crate) async fn run(access: &Access, options: &Options) -> Result<ExitCode, Error> {
    let client = access.connect().await?;
    let gateways = Gateways::find(client).await?;
    match &options.verb {
        Verb::Apply(options) => gateways.apply(options).await?,
        Verb::List(options) => gateways.list(options.namespace.as_deref()).await?,
        Verb::Status(one) => return gateways.status(one).await,
        Verb::Delete(one) => gateways.delete(one).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The Gateway API of a cluster.
struct Gateways {
    client: Client,
    resource: ApiResource,
}

impl Gateways {
    async fn find(client: Client) -> Result<Self, Error> {
        let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "Gateway");
        let found = oneshot::pinned_kind(&client, &kind).await;
        let (resource, _) =
            found.map_err(api("find Gateways: are the Gateway API's definitions installed?"))?;
        Ok(Self { client, resource })
    }

    fn of(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &self.resource)
    }

    /// The Gateway of this name, if there is one. One of another class is not Ambit's to change.
    async fn existing(&self, one: &One) -> Result<Option<DynamicObject>, Error> {
        let (namespace, name) = (&one.namespace, &one.name);
        let found = self.of(namespace).get_opt(name).await;
        let found = found.map_err(api(format!("read Gateway {namespace}/{name}")))?;
        match found.as_ref().map(view::class) {
            Some(class) if class != WAYPOINT_CLASS => Err(Error::Refused(format!(
                "Gateway {namespace}/{name} has the class {class:?}, not {WAYPOINT_CLASS}"
            ))),
            _ => Ok(found),
        }
    }

    async fn get(&self, one: &One) -> Result<DynamicObject, Error> {
        let found = self.existing(one).await?;
        found.ok_or_else(|| Error::Refused(format!("there is no waypoint {}/{}", one.namespace, one.name)))
    }

    async fn apply(&self, options: &Apply) -> Result<(), Error> {
        let one = &options.waypoint;
        let (namespace, name) = (&one.namespace, &one.name);
        if self.existing(one).await?.is_none() || options.traffic.is_some() {
            let parameters = PatchParams::apply(MANAGER).force();
            let gateway = Patch::Apply(gateway(one, options.traffic));
            let applied = self.of(namespace).patch(name, &parameters, &gateway).await;
            applied.map_err(api(format!("apply Gateway {namespace}/{name}")))?;
        }
        wait::until("program the waypoint", Duration::from_secs(options.timeout), async || {
            Ok(Look::for_missing(view::missing(&self.get(one).await?)))
        })
        .await?;
        outln!("waypoint {namespace}/{name} is programmed")?;
        if options.bind_namespace {
            self.bind(one).await?;
        }
        Ok(())
    }

    /// A namespace that named another waypoint names this one then.
    async fn bind(&self, one: &One) -> Result<(), Error> {
        let namespace = &one.namespace;
        let labels = json!({ USE_WAYPOINT: one.name, USE_WAYPOINT_NAMESPACE: Value::Null });
        label_namespace(&self.client, namespace, &labels).await?;
        outln!("namespace {namespace} is bound to it")
    }

    async fn list(&self, namespace: Option<&str>) -> Result<(), Error> {
        let gateways = match namespace {
            Some(namespace) => self.of(namespace),
            None => Api::all_with(self.client.clone(), &self.resource),
        };
        let found = gateways.list(&ListParams::default()).await.map_err(api("list Gateways"))?;
        let mut table = Table::new(&view::COLUMNS);
        for gateway in found.items.iter().filter(|gateway| view::class(gateway) == WAYPOINT_CLASS) {
            table.row(view::row(gateway));
        }
        outln!("{}", table.to_string().trim_end())
    }

    async fn status(&self, one: &One) -> Result<ExitCode, Error> {
        let gateway = self.get(one).await?;
        let mut table = Table::new(&["CONDITION", "STATUS", "REASON", "MESSAGE"]);
        for condition in view::conditions(&gateway) {
            table.row([condition.kind, condition.status, condition.reason, condition.message]);
        }
        outln!("{}", table.to_string().trim_end())?;
        for bound in self.bound(one).await? {
            outln!("{bound} is bound to it")?;
        }
        Ok(if view::missing(&gateway).is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn delete(&self, one: &One) -> Result<(), Error> {
        let (namespace, name) = (&one.namespace, &one.name);
        self.get(one).await?;
        let deleted = self.of(namespace).delete(name, &DeleteParams::default()).await;
        deleted.map_err(api(format!("delete Gateway {namespace}/{name}")))?;
        outln!("waypoint {namespace}/{name} is deleted")?;
        for bound in self.bound(one).await? {
            outln!("{bound} still has its label {USE_WAYPOINT}")?;
        }
        Ok(())
    }

    /// The namespaces and Services whose labels name it.
    async fn bound(&self, one: &One) -> Result<Vec<String>, Error> {
        let named = ListParams::default().labels(&format!("{USE_WAYPOINT}={}", one.name));
        let namespaces = Api::<Namespace>::all(self.client.clone()).list_metadata(&named).await;
        let namespaces = namespaces.map_err(api("list namespaces"))?;
        let services = Api::<Service>::all(self.client.clone()).list_metadata(&named).await;
        let services = services.map_err(api("list Services"))?;
        let names = |labels: &_, own: &str| view::names(labels, own, &one.namespace);
        let namespaces = namespaces.items.iter().filter(|it| names(it.labels(), &it.name_any()));
        let own = |namespace: Option<String>| namespace.unwrap_or_default();
        let services = services.items.iter().filter(|it| names(it.labels(), &own(it.namespace())));
        let services = services.map(|it| format!("Service {}/{}", own(it.namespace()), it.name_any()));
        Ok(namespaces.map(|it| format!("namespace {}", it.name_any())).chain(services).collect())
    }
}

/// The Gateway of a waypoint.
fn gateway(one: &One, traffic: Option<Traffic>) -> Value {
    let traffic = traffic.and_then(|traffic| Some(traffic.to_possible_value()?.get_name().to_owned()));
    let labels = traffic.map(|traffic| json!({ WAYPOINT_FOR: traffic })).unwrap_or_default();
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": { "name": one.name, "namespace": one.namespace, "labels": labels },
        "spec": {
            "gatewayClassName": WAYPOINT_CLASS,
            "listeners": [{ "name": "mesh", "port": HBONE_PORT, "protocol": "HBONE" }],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_have_a_label_only_where_it_is_asked_for() {
        let one = One { name: "gate".to_owned(), namespace: "shop".to_owned() };
        let rows = [
            (None, Value::Null),
            (Some(Traffic::All), json!({ "istio.io/waypoint-for": "all" })),
            (Some(Traffic::None), json!({ "istio.io/waypoint-for": "none" })),
        ];
        for (traffic, labels) in rows {
            let made = gateway(&one, traffic);
            assert_eq!(made["metadata"]["labels"], labels, "{traffic:?}");
            assert_eq!(made["spec"]["gatewayClassName"], "ambit-waypoint");
        }
    }
}
