//! What is left in the API when Ambit's own parts are gone: the objects that the controllers created for
//! themselves. (What is left on pods: [`crate::annotations`].)

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, DeleteParams};

use crate::object::delete;

/// The objects that the controllers created, by name.
#[derive(Clone, Debug)]
pub struct Remains {
    /// Ambit's own namespace.
    pub namespace: String,
    /// The Secret with the CA's keys.
    pub secret: String,
    /// The ConfigMap with the trust bundle.
    pub config_map: String,
    /// The Lease of the leading controller.
    pub lease: String,
}

impl Remains {
    /// Deletes them; `deleted` gets the name of each that there was.
    pub async fn delete(&self, client: &Client, mut deleted: impl FnMut(&str)) -> kube::Result<()> {
        let parameters = DeleteParams::default();
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &self.namespace);
        let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &self.namespace);
        let leases: Api<Lease> = Api::namespaced(client.clone(), &self.namespace);
        // The keys first: nothing uses them any more. One that cannot be deleted does not keep the others.
        let results = [
            (&self.secret, delete(&secrets, &self.secret, &parameters).await),
            (&self.config_map, delete(&config_maps, &self.config_map, &parameters).await),
            (&self.lease, delete(&leases, &self.lease, &parameters).await),
        ];
        let mut first_error = Ok(());
        for (name, result) in results {
            match result {
                Ok(true) => deleted(name),
                Ok(false) => {}
                Err(error) => first_error = first_error.and(Err(error)),
            }
        }
        first_error
    }
}
