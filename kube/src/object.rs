//! One object: [`write`] and [`delete`].

use std::fmt::Debug;

use kube::api::{Api, DeleteParams, PostParams};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::is_not_found;

/// Writes an object over the version that was read (`metadata.resourceVersion`) and no other; one without a
/// version is created. A conflict is an error ([`crate::error::is_conflict`]).
pub async fn write<K>(api: &Api<K>, object: &K) -> kube::Result<K>
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned,
{
    let parameters = PostParams::default();
    if object.resource_version().is_some() {
        api.replace(&object.name_any(), &parameters, object).await
    } else {
        api.create(&parameters, object).await
    }
}

/// Deletes an object; whether there was one.
pub async fn delete<K>(api: &Api<K>, name: &str, parameters: &DeleteParams) -> kube::Result<bool>
where
    K: Clone + Debug + DeserializeOwned,
{
    match api.delete(name, parameters).await {
        Ok(_) => Ok(true),
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
